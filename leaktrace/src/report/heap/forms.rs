//! A look at the heap for others to read: a page, Markdown, CSV.

use std::fmt::{self, Write as _};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use super::{
    difference,
    model::{Group, Heap},
    text::{self, held, held_by, name, what},
};
use crate::{
    report::{
        escape,
        forms::{cell, code, json, plain},
        text::Style,
    },
    units,
};

const STYLE: &str = include_str!("../forms/page/page.css");
/// Columns of what grew.
const WIDTH: usize = 100;
const HEADER: [&str; 10] = [
    "verdict",
    "cache",
    "caller",
    "module",
    "objects",
    "bytes",
    "content",
    "allocated_by",
    "structures",
    "addresses",
];

/// A form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HeapForm {
    /// For reading, as wide as the terminal.
    Text,
    /// For programs: all of it, as leaktrace.heap/1.
    Json,
    /// A page for a browser, which needs nothing else.
    Html,
    /// For a mail or an issue.
    Markdown,
    /// One line for each kind of lost objects.
    Csv,
}

/// The answer in a form.
///
/// # Errors
/// When it cannot be written as JSON or CSV, which does not happen in memory.
pub fn render(heap: &Heap, form: HeapForm, style: &Style) -> Result<Vec<u8>> {
    Ok(match form {
        HeapForm::Text => text::render(heap, style).into_bytes(),
        HeapForm::Json => json(heap)?.into_bytes(),
        HeapForm::Html => html(heap).into_bytes(),
        HeapForm::Markdown => markdown(heap).into_bytes(),
        HeapForm::Csv => csv(heap)?,
    })
}

/// For a mail or an issue.
fn markdown(heap: &Heap) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_markdown(&mut out, heap);
    out
}

fn write_markdown(out: &mut String, heap: &Heap) -> fmt::Result {
    writeln!(out, "## leaktrace: kernel memory as it is\n\n{}\n", plain(&text::headline(heap)))?;
    writeln!(out, "* kernel {}", code(&heap.kernel))?;
    writeln!(
        out,
        "* {}, looked at {} by leaktrace {}",
        plain(&heap.architecture),
        plain(&heap.taken),
        plain(&heap.tool_version)
    )?;
    if !heap.groups.is_empty() {
        writeln!(out, "\n| objects | bytes | cache | module | what they are |")?;
        writeln!(out, "|--------:|------:|-------|--------|--------------|")?;
    }
    for group in &heap.groups {
        writeln!(
            out,
            "| {} | {} | {} | {} | {} |",
            units::count(group.objects),
            units::bytes(group.bytes as f64),
            code(&name(group)),
            plain(group.module.as_deref().unwrap_or("")),
            plain(&what(group).join("; "))
        )?;
    }
    if !heap.holders.is_empty() {
        writeln!(out, "\nWho holds the most:\n")?;
    }
    for holding in &heap.holders {
        writeln!(out, "* {}", plain(&held(holding, false)))?;
    }
    for note in &heap.notes {
        writeln!(out, "* note: {}", plain(note))?;
    }
    if let Some(grown) = &heap.grown {
        writeln!(out, "\n```\n{}```", difference::render(grown, WIDTH).replace("```", "~~~"))?;
    }
    Ok(())
}

/// One line for each kind of lost objects.
///
/// # Errors
/// When a cell cannot be written, which does not happen in memory.
fn csv(heap: &Heap) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(HEADER).context("cannot write CSV")?;
    for group in &heap.groups {
        let makers: Vec<&str> = group.allocated_by.iter().map(|maker| maker.place.as_str()).collect();
        let structures: u64 = group.proof.structures.iter().map(|structure| structure.structures).sum();
        let addresses: Vec<String> =
            group.objects_sample.iter().map(|object| format!("{:#x}", object.address)).collect();
        let record = [
            cell(&group.verdict),
            cell(&group.cache),
            cell(group.caller.as_deref().unwrap_or("")),
            cell(group.module.as_deref().unwrap_or("")),
            group.objects.to_string(),
            group.bytes.to_string(),
            cell(&what(group).join("; ")),
            cell(&makers.join("; ")),
            structures.to_string(),
            addresses.join(" "),
        ];
        writer.write_record(record).context("cannot write CSV")?;
    }
    writer.into_inner().context("cannot write CSV")
}

/// A page for a browser. It has no script and loads nothing.
fn html(heap: &Heap) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_html(&mut out, heap);
    out
}

fn write_html(out: &mut String, heap: &Heap) -> fmt::Result {
    let class = if heap.lost.objects > 0 {
        "leak"
    } else if text::is_known(heap) {
        "good"
    } else {
        "unknown"
    };
    writeln!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>leaktrace heap</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>leaktrace heap</h1>\n\
         <p id=\"machine\">{}, {}, {}</p>\n</header>\n<main>\n<section id=\"headline\" class=\"{class}\">{}</section>",
        html_text(&heap.kernel),
        html_text(&heap.architecture),
        html_text(&heap.taken),
        html_text(&text::headline(heap))
    )?;
    let rows = heap.groups.iter().map(row);
    table(out, "Lost", &["objects", "bytes", "cache", "module", "what they are"], rows)?;
    let holders = heap.holders.iter().map(|holding| {
        [
            units::count(holding.objects),
            units::bytes(holding.bytes as f64),
            holding.cache.clone(),
            String::new(),
            held_by(holding, true),
        ]
    });
    table(out, "Who holds the most", &["objects", "bytes", "cache", "", "held by"], holders)?;
    let known = heap.known.iter().map(|known| {
        [units::count(known.objects), String::new(), known.cache.clone(), String::new(), known.why.clone()]
    });
    table(out, "Lost on any kernel", &["objects", "", "cache", "", "why"], known)?;
    for note in &heap.notes {
        writeln!(out, "<p class=\"note\">{}</p>", html_text(note))?;
    }
    if let Some(grown) = &heap.grown {
        let text = difference::render(grown, WIDTH);
        writeln!(out, "<section>\n<h2>What grew</h2>\n<pre>{}</pre>\n</section>", html_lines(&text))?;
    }
    writeln!(out, "</main>\n</body>\n</html>")
}

fn row(group: &Group) -> [String; 5] {
    [
        units::count(group.objects),
        units::bytes(group.bytes as f64),
        name(group),
        group.module.clone().unwrap_or_default(),
        what(group).join("; "),
    ]
}

/// A table under a title; nothing where it has no rows.
fn table(
    out: &mut String,
    title: &str,
    header: &[&str; 5],
    rows: impl Iterator<Item = [String; 5]>,
) -> fmt::Result {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return Ok(());
    }
    writeln!(out, "<section>\n<h2>{title}</h2>\n<div class=\"scroll\"><table>\n<thead><tr>")?;
    let class = |column: usize| ["number", "number", "", "", "wide"][column];
    for (column, head) in header.iter().enumerate() {
        writeln!(out, "<th class=\"{}\">{head}</th>", class(column))?;
    }
    writeln!(out, "</tr></thead>\n<tbody>")?;
    for cells in rows {
        write!(out, "<tr>")?;
        for (column, cell) in cells.iter().enumerate() {
            write!(out, "<td class=\"{}\">{}</td>", class(column), html_text(cell))?;
        }
        writeln!(out, "</tr>")?;
    }
    writeln!(out, "</tbody>\n</table></div>\n</section>")
}

/// The same of lines, which stay lines.
fn html_lines(text: &str) -> String {
    text.lines().map(|line| html_text(line) + "\n").collect()
}

/// Text as text: what the kernel has in its memory may be anything.
fn html_text(text: &str) -> String {
    escape(text)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::heap::model::{Amount, Holder, Holding, Known, Object, Sign};

    fn heap() -> Heap {
        let sign = |what: &str, name: &str| Sign {
            offset: 8,
            what: what.into(),
            name: name.into(),
            share: 1.0,
            ..Sign::default()
        };
        Heap {
            kernel: "6.12 <b>".into(),
            lost: Amount { objects: 3, bytes: 192 },
            groups: vec![Group {
                verdict: "lost".into(),
                cache: "kmalloc-64".into(),
                module: Some("foo".into()),
                objects: 3,
                bytes: 192,
                content: vec![
                    sign("symbol", "foo_ops"),
                    sign("text", "=1</td><script>alert(1)</script>|\u{1b}[31m"),
                ],
                objects_sample: vec![Object { address: 0xffff_8880_0000_1000, size: 64 }],
                ..Group::default()
            }],
            holders: vec![Holding {
                cache: "dentry".into(),
                objects: 9,
                sampled: 9,
                holders: vec![Holder { objects: 9, by: "negative".into(), ..Holder::default() }],
                ..Holding::default()
            }],
            known: vec![Known { cache: "kmalloc-cg-96".into(), objects: 2, why: "a & b".into() }],
            notes: vec!["*a note*".into()],
            ..Heap::default()
        }
    }

    #[test]
    fn a_page_shows_text_as_text() {
        let page = html(&heap());
        assert!(!page.contains("<script") && !page.contains("<b>") && !page.contains('\u{1b}'), "{page}");
        assert!(page.contains("&lt;script&gt;") && page.contains("foo_ops") && page.contains("a &amp; b"));
        assert!(page.contains("class=\"leak\">LOST  Nothing leads to 3 objects"), "{page}");
        assert!(page.contains("100 % are names of nothing"), "{page}");
        assert_eq!((page.matches("<table>").count(), page.matches("</table>").count()), (3, 3));
    }

    #[test]
    fn a_table_has_a_row_for_each_kind() {
        let text = String::from_utf8(csv(&heap()).unwrap()).unwrap();
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        assert_eq!(reader.headers().unwrap().iter().collect::<Vec<_>>(), HEADER);
        let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
        assert_eq!(rows.len(), 1);
        assert_eq!(
            (&rows[0][1], &rows[0][3], &rows[0][4], &rows[0][9]),
            ("kmalloc-64", "foo", "3", "0xffff888000001000")
        );
        // No spreadsheet takes it for a formula.
        assert!(rows[0][6].starts_with('\''), "{}", &rows[0][6]);
    }

    #[test]
    fn a_mail_has_no_markup_of_the_kernels() {
        let text = markdown(&heap());
        assert!(text.contains("| 3 | 192 B | `kmalloc-64` | foo |"), "{text}");
        assert!(text.contains("\\<script>") && text.contains("\\*a note\\*"), "{text}");
        assert_eq!(text.lines().filter(|line| line.starts_with('|')).count(), 3);
    }
}
