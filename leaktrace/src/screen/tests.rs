//! The screen, on a terminal that is only a buffer.

use ratatui::{Terminal, backend::TestBackend};

use super::*;
use crate::report::{
    model::{Amount, Group},
    sample,
};

fn drawn(screen: &mut Screen, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer();
    (0..height)
        .map(|y| {
            let line: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
            line.trim_end().to_owned() + "\n"
        })
        .collect()
}

fn screen() -> Screen {
    let mut report = sample::report("leak");
    for (rank, verdict) in ["suspect", "plateau", "cache"].into_iter().enumerate() {
        let mut finding = sample::finding(verdict);
        finding.rank = rank + 2;
        finding.cache = format!("{verdict}_cache");
        finding.live.bytes = 1_000 + rank as u64 * 5_000_000;
        report.findings.push(finding);
    }
    let mut screen = Screen::default();
    screen.show(report);
    screen.tick(Busy { events_per_s: 123_456.0, live: 20_408, elapsed_s: 61.0 });
    screen
}

fn press(screen: &mut Screen, keys: &[KeyCode]) {
    for &key in keys {
        assert_eq!(screen.press(KeyEvent::new(key, KeyModifiers::NONE)), Wish::Draw);
    }
}

const fn letter(c: char) -> KeyCode {
    KeyCode::Char(c)
}

#[test]
fn lists_and_a_finding_fit_a_terminal() {
    let mut screen = screen();
    insta::assert_snapshot!("findings_80x24", drawn(&mut screen, 80, 24));
    insta::assert_snapshot!("findings_140x24", drawn(&mut screen, 140, 24));
    press(&mut screen, &[KeyCode::Enter]);
    insta::assert_snapshot!("full_80x24", drawn(&mut screen, 80, 60));
    press(&mut screen, &[KeyCode::Esc, KeyCode::Tab]);
    insta::assert_snapshot!("caches_80x24", drawn(&mut screen, 80, 24));
    press(&mut screen, &[KeyCode::Tab, KeyCode::Tab, letter('?')]);
    insta::assert_snapshot!("help_80x24", drawn(&mut screen, 80, 24));
}

/// On a narrow terminal less important columns are left out, and no number is cut.
#[test]
fn any_width_fits() {
    let mut screen = screen();
    for finding in &mut screen.report.as_mut().unwrap().findings {
        finding.live.bytes = 1_023_900;
        finding.live.objects = 12_345_678;
    }
    for tab in Tab::ALL {
        screen.turn_to(tab);
        fits(&mut screen, tab.title());
        insta::assert_snapshot!(format!("{}_40x16", tab.title().to_lowercase()), drawn(&mut screen, 40, 16));
    }
    screen.turn_to(Tab::Findings);
    press(&mut screen, &[letter('p'), KeyCode::Enter]);
    fits(&mut screen, "a finding");
    insta::assert_snapshot!("full_40x16", drawn(&mut screen, 40, 16));
    press(&mut screen, &[KeyCode::Esc, letter('?')]);
    insta::assert_snapshot!("help_40x28", drawn(&mut screen, 40, 28));
}

/// Fails unless a screen shows whole numbers in every width, and its texts fit.
fn fits(screen: &mut Screen, what: &str) {
    let widest = drawn(screen, 300, 200);
    for width in sample::WIDTHS {
        println!("{what} at {width}");
        sample::assert_fits(&drawn(screen, width as u16, 200), &widest, width);
        if screen.mode == Mode::Full {
            let report = screen.report.as_ref().unwrap();
            let lines = full::lines(report, screen.findings()[0], width);
            sample::assert_fits(&lines.join("\n"), &widest, width);
        }
        if screen.tab == Tab::Coverage {
            let report = screen.report.as_ref().unwrap();
            sample::assert_fits(&full::coverage(report, width).join("\n"), &widest, width);
        }
    }
}

#[test]
fn keys_find_their_way() {
    let mut screen = screen();
    press(&mut screen, &[letter('j'), letter('j')]);
    assert_eq!(screen.chosen.as_ref().unwrap().2, "plateau_cache");
    // It stays chosen when the order changes.
    press(&mut screen, &[letter('s')]);
    let findings = screen.findings();
    assert_eq!(findings[0].finding.cache, "cache_cache");
    assert_eq!(screen.chosen_index(&findings), 1);
    press(&mut screen, &[KeyCode::End, KeyCode::PageDown, KeyCode::Home, KeyCode::Up]);
    assert_eq!(screen.chosen.as_ref().unwrap().2, "cache_cache");
    // A filter has all its words, in any field.
    press(&mut screen, &[letter('/')]);
    for c in "KWORKER suspect".chars() {
        press(&mut screen, &[letter(c)]);
    }
    press(&mut screen, &[KeyCode::Enter]);
    assert_eq!(screen.findings().len(), 1);
    press(&mut screen, &[letter('/'), letter('x'), letter('q')]);
    assert!(screen.findings().is_empty(), "q is a letter there");
    assert!(drawn(&mut screen, 80, 24).contains("nothing has all these words"));
    press(&mut screen, &[KeyCode::Enter, KeyCode::Enter, KeyCode::Esc]);
    assert_eq!(screen.findings().len(), 4);
    press(&mut screen, &[letter('p')]);
    assert!(screen.is_paused() && drawn(&mut screen, 80, 24).contains("PAUSED"));
    assert_eq!(screen.press(KeyEvent::new(letter('q'), KeyModifiers::NONE)), Wish::Quit);
    assert_eq!(screen.press(KeyEvent::new(letter('c'), KeyModifiers::CONTROL)), Wish::Quit);
}

/// What one process keeps is one line, as in the text, and opened it says what that is.
#[test]
fn a_group_is_one_line() {
    let mut screen = screen();
    let report = screen.report.as_mut().unwrap();
    report.findings.truncate(3);
    report.findings[2].verdict = "suspect".into();
    report.groups = vec![Group {
        findings: vec![2, 3],
        comm: "pipeleaker".to_owned(),
        pid: 391,
        call: "pipe2".to_owned(),
        keeps: Some("pipes".to_owned()),
        caches: 2,
        live: Amount { objects: 10_204, bytes: 2 << 30 },
        bytes_per_s: 44_600.0,
    }];
    assert_eq!(screen.findings().len(), 2);
    insta::assert_snapshot!("group_80x12", drawn(&mut screen, 80, 12));
    // It is sorted by what it has as a whole, and found by what any part of it has.
    press(&mut screen, &[letter('s')]);
    assert_eq!(screen.findings()[0].finding.rank, 2);
    screen.filter = "plateau_cache keeps open".to_owned();
    assert_eq!(screen.findings().len(), 1);
    press(&mut screen, &[KeyCode::Enter]);
    insta::assert_snapshot!("group_in_full_80x14", drawn(&mut screen, 80, 14));
}

#[test]
fn any_size_is_survived() {
    let mut screen = screen();
    for tab in Tab::ALL {
        screen.turn_to(tab);
        for (width, height) in [(1, 1), (40, 8), (41, 9), (79, 5), (300, 100)] {
            drawn(&mut screen, width, height);
        }
    }
    press(&mut screen, &[KeyCode::Tab, KeyCode::Enter, KeyCode::End]);
    for (width, height) in [(1, 1), (40, 8), (300, 100)] {
        drawn(&mut screen, width, height);
    }
    let mut waiting = Screen::default();
    assert!(drawn(&mut waiting, 80, 24).contains("Waiting"));
    press(&mut waiting, &[KeyCode::Enter, KeyCode::Down, KeyCode::Tab, KeyCode::Down]);
    drawn(&mut waiting, 80, 24);
}

#[test]
fn no_name_is_obeyed() {
    let mut screen = screen();
    for finding in &mut screen.report.as_mut().unwrap().findings {
        finding.cache = "\u{1b}[2J\u{202e}".to_owned();
        finding.responsible.symbol = Some("\u{1b}]0;x\u{7}".to_owned());
    }
    press(&mut screen, &[KeyCode::Enter]);
    for mode in [Mode::Full, Mode::List] {
        screen.mode = mode;
        assert!(!drawn(&mut screen, 140, 60).contains(['\u{1b}', '\u{7}', '\u{202e}']));
    }
}
