//! What `leaktrace top` shows, and what its keys do: pure, so that it is tested without a terminal.

mod draw;
mod full;
mod lists;

use std::cmp::Reverse;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::report::{
    findings::{self, Line},
    model::{Finding, Report},
};

/// Lines that the keys for pages go.
const PAGE: isize = 10;
/// Letters of a filter.
const LONGEST_FILTER: usize = 60;

/// How busy the tracing is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Busy {
    /// Allocations and frees each second.
    pub events_per_s: f64,
    /// Objects that are live.
    pub live: u64,
    /// Seconds since the start.
    pub elapsed_s: f64,
}

/// What is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tab {
    /// Sites by verdict.
    #[default]
    Findings,
    /// Slab caches.
    Caches,
    /// Modules.
    Modules,
    /// Slab, pages and so on.
    Families,
    /// What is seen, missed, and what it costs.
    Coverage,
}

impl Tab {
    const ALL: [Self; 5] = [Self::Findings, Self::Caches, Self::Modules, Self::Families, Self::Coverage];

    fn title(self) -> &'static str {
        match self {
            Self::Findings => "Findings",
            Self::Caches => "Caches",
            Self::Modules => "Modules",
            Self::Families => "Families",
            Self::Coverage => "Coverage",
        }
    }

    fn step(self, by: usize) -> Self {
        after(&Self::ALL, self, by)
    }
}

/// What findings are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sort {
    /// The likeliest leak first.
    #[default]
    Verdict,
    Bytes,
    Growth,
    Objects,
    Age,
}

impl Sort {
    const ALL: [Self; 5] = [Self::Verdict, Self::Bytes, Self::Growth, Self::Objects, Self::Age];

    fn word(self) -> &'static str {
        match self {
            Self::Verdict => "verdict",
            Self::Bytes => "bytes",
            Self::Growth => "growth",
            Self::Objects => "live",
            Self::Age => "oldest",
        }
    }

    fn next(self) -> Self {
        after(&Self::ALL, self, 1)
    }
}

/// What comes so many places after one of all, and round again.
fn after<T: Copy + PartialEq>(all: &[T], one: T, by: usize) -> T {
    let at = all.iter().position(|&other| other == one).unwrap_or(0);
    all[(at + by) % all.len()]
}

/// What keys mean at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    List,
    /// A finding in full.
    Full,
    Help,
    /// Letters go to the filter.
    Filter,
}

/// What a key asks the command for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Draw again.
    Draw,
    /// End.
    Quit,
}

/// The screen's state.
#[derive(Debug, Default)]
pub struct Screen {
    report: Option<Report>,
    busy: Busy,
    tab: Tab,
    sort: Sort,
    mode: Mode,
    filter: String,
    /// The finding that is chosen or shown in full, by what does not change with its rank.
    chosen: Option<Key>,
    /// The chosen row of other lists, and the first line shown of a text.
    row: usize,
    scroll: usize,
    paused: bool,
}

/// What a finding is known by from one report to the next.
type Key = (u64, u64, String, String);

fn key(finding: &Finding) -> Key {
    (
        finding.responsible.address,
        finding.call_site.address,
        finding.cache.clone(),
        finding.family.clone().into_owned(),
    )
}

impl Screen {
    /// Whether the present report is to stay.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Shows how things stand now.
    pub fn show(&mut self, report: Report) {
        self.report = Some(report);
    }

    /// Shows how busy it is.
    pub fn tick(&mut self, busy: Busy) {
        self.busy = busy;
    }

    /// The findings that are shown, in their order; a group has one line.
    fn findings(&self) -> Vec<Line<'_>> {
        let Some(report) = &self.report else { return Vec::new() };
        let words: Vec<String> = self.filter.to_lowercase().split_whitespace().map(str::to_owned).collect();
        let matches = |line: &Line<'_>| {
            let text = text_of(report, *line);
            words.iter().all(|word| text.contains(word))
        };
        let mut lines = findings::lines(report);
        lines.retain(matches);
        match self.sort {
            Sort::Verdict => {}
            Sort::Bytes => lines.sort_by_key(|line| Reverse(line.live().bytes)),
            Sort::Growth => lines.sort_by(|a, b| b.rate().total_cmp(&a.rate())),
            Sort::Objects => lines.sort_by_key(|line| Reverse(line.live().objects)),
            Sort::Age => {
                lines.sort_by(|a, b| b.finding.survivors.oldest_s.total_cmp(&a.finding.survivors.oldest_s));
            }
        }
        lines
    }

    /// Index of the chosen finding; of the first one if it is not there any more.
    fn chosen_index(&self, lines: &[Line<'_>]) -> usize {
        self.chosen
            .as_ref()
            .and_then(|chosen| lines.iter().position(|line| key(line.finding) == *chosen))
            .unwrap_or(0)
    }

    /// Does what a key says.
    pub fn press(&mut self, event: KeyEvent) -> Wish {
        if event.modifiers.contains(KeyModifiers::CONTROL) {
            return if event.code == KeyCode::Char('c') { Wish::Quit } else { Wish::Draw };
        }
        match self.mode {
            Mode::Filter => self.type_filter(event.code),
            Mode::Help => self.mode = Mode::List,
            Mode::List | Mode::Full => return self.command(event.code),
        }
        Wish::Draw
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.mode = Mode::List,
            KeyCode::Esc => {
                self.filter.clear();
                self.mode = Mode::List;
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(c) if self.filter.chars().count() < LONGEST_FILTER && !c.is_control() => {
                self.filter.push(c);
            }
            _ => {}
        }
    }

    fn command(&mut self, code: KeyCode) -> Wish {
        match code {
            KeyCode::Char('q') => return Wish::Quit,
            KeyCode::Esc | KeyCode::Enter if self.mode == Mode::Full => self.mode = Mode::List,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('?') => self.mode = Mode::Help,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('/') => {
                self.tab = Tab::Findings;
                self.mode = Mode::Filter;
            }
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Tab | KeyCode::Right | KeyCode::Char('l') => self.turn_to(self.tab.step(1)),
            KeyCode::BackTab | KeyCode::Left | KeyCode::Char('h') => {
                self.turn_to(self.tab.step(Tab::ALL.len() - 1));
            }
            KeyCode::Enter if self.tab == Tab::Findings => {
                self.step(0);
                if self.chosen.is_some() {
                    (self.mode, self.scroll) = (Mode::Full, 0);
                }
            }
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::PageDown => self.step(PAGE),
            KeyCode::PageUp => self.step(-PAGE),
            KeyCode::Home | KeyCode::Char('g') => self.step(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.step(isize::MAX),
            _ => {}
        }
        Wish::Draw
    }

    fn turn_to(&mut self, tab: Tab) {
        (self.tab, self.row, self.scroll, self.mode) = (tab, 0, 0, Mode::List);
    }

    /// Goes down so many rows or lines, or up.
    fn step(&mut self, by: isize) {
        if self.mode == Mode::Full || self.tab == Tab::Coverage {
            // What is below the end is cut off when it is drawn.
            self.scroll = self.scroll.saturating_add_signed(by);
        } else if self.tab == Tab::Findings {
            let findings = self.findings();
            let last = findings.len().saturating_sub(1);
            let index = self.chosen_index(&findings).saturating_add_signed(by).min(last);
            self.chosen = findings.get(index).map(|line| key(line.finding));
        } else {
            self.row = self.row.saturating_add_signed(by);
        }
    }
}

/// What a filter looks at, in small letters: of a group, all that it consists of.
fn text_of(report: &Report, line: Line<'_>) -> String {
    let Some(group) = line.group else { return words_of(line.finding).to_lowercase() };
    let of: Vec<String> = findings::of_group(report, group).map(words_of).collect();
    format!("{} {} {}", group.who(), group.what(), of.join(" ")).to_lowercase()
}

fn words_of(finding: &Finding) -> String {
    let frames = finding.stacks.iter().flat_map(|stack| &stack.frames);
    let mut text = format!(
        "{} {} {} {} {} {}",
        finding.verdict,
        finding.family,
        finding.cache,
        finding.module,
        finding.responsible.label(),
        finding.call_site.label()
    );
    for frame in frames {
        text.push(' ');
        text.push_str(&frame.label());
    }
    for task in &finding.tasks {
        text.push(' ');
        text.push_str(&task.comm);
    }
    text
}

#[cfg(test)]
mod tests;
