//! A report without kernel addresses, for whoever may not know these.

use std::collections::HashMap;

use super::model::{Frame, Report};

impl Report {
    /// Puts numbers in the place of kernel addresses: equal ones stay equal, and tell nothing of where the kernel is. Objects, which
    /// are nothing but addresses, go.
    pub fn forget_addresses(&mut self) {
        let mut numbers = HashMap::new();
        let mut forget = |frame: &mut Frame| {
            let next = numbers.len() as u64 + 1;
            if frame.address != 0 {
                frame.address = *numbers.entry(frame.address).or_insert(next);
            }
        };
        for finding in &mut self.findings {
            finding.objects.clear();
            forget(&mut finding.call_site);
            forget(&mut finding.responsible);
            finding.in_module.iter_mut().for_each(&mut forget);
            finding.stacks.iter_mut().flat_map(|stack| &mut stack.frames).for_each(&mut forget);
        }
        self.unloads
            .iter_mut()
            .flat_map(|unload| &mut unload.sites)
            .for_each(|site| forget(&mut site.function));
    }
}

#[cfg(test)]
mod tests {
    use crate::report::sample;

    #[test]
    fn no_address_is_left() {
        let mut report = sample::report("leak");
        let text = |report: &_| serde_json::to_string(report).unwrap();
        assert!(text(&report).contains("\"0xffff"));
        let same = report.findings[0].responsible.address == report.findings[0].call_site.address;
        report.forget_addresses();
        assert!(!text(&report).contains("\"0xffff"), "{}", text(&report));
        let first = &report.findings[0];
        assert_eq!(first.responsible.address == first.call_site.address, same);
        assert!(first.objects.is_empty() && first.call_site.symbol.is_some());
    }
}
