//! Folded stacks, one line for each with its live bytes, and the flame graph that inferno makes of them.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use inferno::flamegraph::{self, Options, color::BasicPalette, color::Palette};

use super::stacks::{function, shares};
use crate::report::{escape, model::Report};

/// Lines like `kthread;worker_thread;foo_rx [foo];__alloc_skb;(skbuff_head_cache) 4096`, the outermost frame first and the
/// slab cache last.
pub(super) fn render(report: &Report) -> String {
    let mut out = String::new();
    for (stack, bytes) in lines(report) {
        out.push_str(&stack);
        out.push(' ');
        out.push_str(&bytes.to_string());
        out.push('\n');
    }
    out
}

fn lines(report: &Report) -> BTreeMap<String, u64> {
    let mut lines = BTreeMap::new();
    for share in shares(report) {
        let mut names: Vec<String> = share.frames.iter().rev().map(|frame| name(&function(frame))).collect();
        names.push(format!("({})", name(&share.finding.cache)));
        *lines.entry(names.join(";")).or_default() += share.bytes;
    }
    lines
}

/// A name that ends no frame and no line.
fn name(text: &str) -> String {
    escape(text).replace(';', ":")
}

/// The flame graph, as SVG with its own script for zooming and searching.
pub(super) fn flame_graph(report: &Report) -> Result<String> {
    let mut options = Options::default();
    "Live kernel memory by stack".clone_into(&mut options.title);
    "bytes".clone_into(&mut options.count_name);
    options.subtitle = report.filters.in_words();
    options.colors = Palette::Basic(BasicPalette::Mem);
    options.deterministic = true;
    let folded = render(report);
    // Without any stack it would refuse.
    let folded = if folded.is_empty() { "(nothing is live) 1\n" } else { &folded };
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, folded.lines(), &mut svg).context("cannot draw the flame graph")?;
    String::from_utf8(svg).context("the flame graph is no text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn stacks_are_folded_from_the_outermost_frame_on() {
        let mut report = sample::report("leak");
        report.findings[0].cache = "a;b\nc".to_owned();
        assert_eq!(
            render(&report),
            "kthread;worker_thread;process_one_work;foo_rx [foo];__alloc_skb;(a:b\\nc) 1306112\n"
        );
        assert!(flame_graph(&report).unwrap().contains("foo_rx [foo]"));
    }
}
