//! Drawing the screen.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span, Text},
    widgets::{Block, Cell, Clear, Paragraph, Row, Table, TableState, Wrap},
};

use super::{
    Mode, Screen, Sort, Tab, full,
    lists::{self, GAP, List},
};
use crate::{
    report::{escape, page::wrap},
    units,
};

/// Too small to show anything of use.
const SMALLEST: (u16, u16) = (40, 8);

const HELP: [(&str, &str); 12] = [
    ("up, down, j, k", "another row"),
    ("PgUp, PgDn, g, G", "ten rows, the first, the last"),
    ("Enter", "a finding in full: evidence, chart, stacks, objects"),
    ("Esc", "back, or forget the filter"),
    ("Tab, left, right", "findings, caches, modules, families, coverage"),
    ("/", "filter by words of function, module, cache, stack, task"),
    ("s", "sort by verdict, bytes, growth, live objects, age"),
    ("p, space", "pause: tracing goes on, the screen stays"),
    ("?", "these keys"),
    ("q, Ctrl-C", "end"),
    ("", ""),
    ("trend", "surviving bytes since the start, against their highest"),
];

impl Screen {
    /// Draws everything.
    pub fn draw(&mut self, frame: &mut Frame<'_>) {
        let area = frame.area();
        if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
            frame.render_widget(Paragraph::new("the terminal is too small").wrap(Wrap { trim: true }), area);
            return;
        }
        let headline = self.headline();
        let lines =
            u16::try_from(headline.width().div_ceil(usize::from(area.width))).unwrap_or(1).clamp(1, 3);
        let [top, said, tabs, body, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(lines),
            Constraint::Length(1),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .areas(area);
        frame.render_widget(self.status(area.width.into()), top);
        frame.render_widget(Paragraph::new(headline).wrap(Wrap { trim: true }), said);
        frame.render_widget(self.tabs(area.width.into()), tabs);
        self.body(frame, body);
        frame.render_widget(self.keys(area.width.into()), keys);
        if self.mode == Mode::Help {
            help(frame, area);
        }
    }

    fn status(&self, width: usize) -> Line<'_> {
        let busy = &self.busy;
        let mut parts = vec![
            (4, "leaktrace top".to_owned()),
            (0, units::seconds(busy.elapsed_s)),
            (3, format!("{} events/s", units::count(busy.events_per_s as u64))),
            (1, format!("{} live", units::count(busy.live))),
        ];
        if let Some(report) = &self.report {
            parts.insert(1, (5, escape(&report.kernel).into_owned()));
            parts.extend(report.overhead.cpu_percent.map(|percent| (2, format!("cost {percent:.2} %"))));
            if report.coverage.sampling > 1 {
                parts.push((1, format!("1 in {} tracked", report.coverage.sampling)));
            }
        }
        let paused = if self.paused { "  PAUSED" } else { "" };
        let text = fitting(parts, width.saturating_sub(paused.len()), "  ");
        Line::from(vec![Span::raw(text), Span::styled(paused, Style::new().add_modifier(Modifier::REVERSED))])
    }

    fn headline(&self) -> Line<'_> {
        let Some(report) = &self.report else {
            return Line::from("Waiting for the first look at what survives ...");
        };
        let verdict = match &*report.headline.verdict {
            "none" => "OK".to_owned(),
            word => escape(word).to_uppercase(),
        };
        Line::from(vec![
            Span::styled(
                format!("{verdict}  "),
                colour(&report.headline.verdict).add_modifier(Modifier::BOLD),
            ),
            Span::raw(escape(&report.headline.text)),
        ])
    }

    fn tabs(&self, width: usize) -> Line<'_> {
        let all: usize = Tab::ALL.iter().map(|tab| tab.title().len() + 3).sum();
        let mut spans = Vec::new();
        // Where there is no room for all, the keys below tell that there are others.
        for tab in Tab::ALL.into_iter().filter(|&tab| all <= width || tab == self.tab) {
            let style = if tab == self.tab {
                Style::new().add_modifier(Modifier::REVERSED)
            } else {
                Style::new().add_modifier(Modifier::DIM)
            };
            spans.push(Span::styled(format!(" {} ", tab.title()), style));
            spans.push(Span::raw(" "));
        }
        if self.mode == Mode::Filter || !self.filter.is_empty() {
            let cursor = if self.mode == Mode::Filter { "_" } else { "" };
            spans.push(Span::raw(format!("/{}{cursor} ", escape(&self.filter))));
        }
        if self.tab == Tab::Findings && self.sort != Sort::Verdict {
            spans.push(Span::raw(format!("by {}", self.sort.word())));
        }
        Line::from(spans)
    }

    fn keys(&self, width: usize) -> Line<'static> {
        let keys: &[(u8, &str)] = match self.mode {
            Mode::Filter => &[(2, "words to look for"), (0, "Enter keep"), (0, "Esc forget")],
            Mode::Full => {
                &[(3, "up/down scroll"), (1, "Enter, Esc back"), (4, "p pause"), (0, "? keys"), (0, "q end")]
            }
            Mode::List | Mode::Help => &[
                (1, "Enter open"),
                (3, "/ filter"),
                (4, "s sort"),
                (2, "Tab lists"),
                (5, "p pause"),
                (0, "? keys"),
                (0, "q end"),
            ],
        };
        let text = fitting(keys.iter().map(|&(rank, key)| (rank, key.to_owned())).collect(), width, "   ");
        Line::styled(text, Style::new().add_modifier(Modifier::DIM))
    }

    fn body(&mut self, frame: &mut Frame<'_>, area: Rect) {
        let Some(report) = &self.report else { return };
        let width = usize::from(area.width);
        let findings = self.findings();
        let chosen = self.chosen_index(&findings);
        let text = match (self.mode, self.tab) {
            (Mode::Full, _) => findings.get(chosen).map(|&line| full::lines(report, line, width)),
            (_, Tab::Coverage) => Some(full::coverage(report, width)),
            _ => None,
        };
        if let Some(lines) = text {
            let last = lines.len().saturating_sub(usize::from(area.height));
            self.scroll = self.scroll.min(last);
            let shown: Vec<Line<'_>> = lines.into_iter().skip(self.scroll).map(Line::from).collect();
            frame.render_widget(Paragraph::new(Text::from(shown)), area);
            return;
        }
        let (list, row) = if self.tab == Tab::Findings {
            (lists::findings(&findings, area.width), chosen)
        } else {
            let list = lists::others(self.tab, report, area.width);
            let row = self.row.min(list.rows.len().saturating_sub(1));
            (list, row)
        };
        let styles: Vec<Style> = findings.iter().map(|line| colour(&line.finding.verdict)).collect();
        let empty = list.rows.is_empty();
        self.row = row;
        table(frame, area, list, row, if self.tab == Tab::Findings { &styles } else { &[] });
        if empty {
            let said = if self.filter.is_empty() { "nothing yet" } else { "nothing has all these words" };
            let [_, below] = Layout::vertical([Constraint::Length(1), Constraint::Min(1)]).areas(area);
            frame.render_widget(Paragraph::new(said), below);
        }
    }
}

/// A list with a chosen row; `styles` are those of verdicts.
fn table(frame: &mut Frame<'_>, area: Rect, list: List, chosen: usize, styles: &[Style]) {
    let cell = |text: String, right: bool| {
        Cell::from(Text::from(text).alignment(if right { Alignment::Right } else { Alignment::Left }))
    };
    let widths: Vec<Constraint> = list
        .columns
        .iter()
        .map(|column| if column.width == 0 { Constraint::Fill(1) } else { Constraint::Length(column.width) })
        .collect();
    let right: Vec<bool> = list.columns.iter().map(|column| column.right).collect();
    let header = list.columns.iter().map(|column| cell(column.title.to_owned(), column.right));
    let verdicts = list.columns.iter().position(|column| column.title == "verdict");
    let rows = list.rows.into_iter().enumerate().map(|(index, row)| {
        let cells = row.into_iter().enumerate().map(|(column, text)| {
            let style = styles.get(index).filter(|_| verdicts == Some(column)).copied().unwrap_or_default();
            cell(text, right[column]).style(style)
        });
        Row::new(cells.collect::<Vec<_>>())
    });
    let table = Table::new(rows, widths)
        .column_spacing(GAP)
        .header(Row::new(header).style(Style::new().add_modifier(Modifier::BOLD)))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::default().with_selected(Some(chosen));
    frame.render_stateful_widget(table, area, &mut state);
}

/// Parts of a line, in their order, without those of the highest ranks where there is no room for them.
fn fitting(mut parts: Vec<(u8, String)>, width: usize, between: &str) -> String {
    loop {
        let text = parts.iter().map(|(_, part)| part.as_str()).collect::<Vec<_>>().join(between);
        let least = parts.iter().enumerate().max_by_key(|(_, (rank, _))| *rank);
        match least.map(|(index, (rank, _))| (index, *rank)) {
            Some((index, rank)) if rank > 0 && text.chars().count() > width => parts.remove(index),
            _ => return text,
        };
    }
}

fn colour(verdict: &str) -> Style {
    match verdict {
        "leak" => Style::new().fg(Color::Red),
        "suspect" => Style::new().fg(Color::Yellow),
        "none" => Style::new().fg(Color::Green),
        _ => Style::new(),
    }
}

fn help(frame: &mut Frame<'_>, area: Rect) {
    let width = 76.min(area.width);
    let mut lines = Vec::new();
    for (keys, what) in HELP {
        for (index, part) in wrap(what, usize::from(width) - 21).into_iter().enumerate() {
            lines.push(Line::from(format!(" {:<17} {part}", if index == 0 { keys } else { "" })));
        }
    }
    let height = (lines.len() as u16 + 2).min(area.height);
    let place =
        Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" Keys ")), place);
}
