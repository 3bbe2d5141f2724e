//! One page for a browser, with everything in it: it loads nothing, and shows names as text only.

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::folded;
use crate::report::model::Report;

const PAGE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// What the page's script shows.
#[derive(Serialize)]
struct Data<'a> {
    /// Whether it is an agent's, which has the next report at `report.json`.
    live: bool,
    report: &'a Report,
    /// The flame graph, as SVG.
    flame: String,
}

pub(super) fn render(report: &Report, live: bool) -> Result<String> {
    let data = Data { live, report, flame: folded::flame_graph(report)? };
    let data = serde_json::to_string(&data).context("cannot write the page's data")?;
    // The parser of HTML looks for the end of a script, and nothing else.
    let data = data.replace('<', "\\u003c");
    Ok(PAGE.replacen("/*style*/", STYLE, 1).replacen("/*script*/", SCRIPT, 1).replacen("/*data*/", &data, 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn the_page_has_its_data_and_needs_nothing_else() {
        let mut report = sample::report("leak");
        report.findings[0].cache = "/*data*/ </script><script>alert(1)</script>".to_owned();
        let page = render(&report, false).unwrap();
        assert_eq!(page.matches("<script").count(), 2, "the script and its data");
        assert_eq!(page.matches("</script>").count(), 2);
        // Its own policy forbids it, and nothing asks for it.
        assert!(page.contains("default-src 'none'"));
        assert!(!page.contains("src=\"") && !page.contains("href=\""), "it loads something");
        let data = page.split("application/json\">").nth(1).unwrap().split("</script>").next().unwrap();
        let data: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["report"]["findings"][0]["cache"], report.findings[0].cache);
        assert!(data["flame"].as_str().unwrap().contains("<svg"));
    }
}
