//! Memory of sockets' buffers: /proc/net/sockstat and /proc/net/protocols.

use std::path::Path;

use anyhow::{Context as _, Result};

/// Bytes that are read at most of each file.
const LIMIT: u64 = 1 << 20;

/// A line of /proc/net/protocols with sockets (`net/core/sock.c`, `proto_seq_printf`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Its name, like `TCPv6`.
    pub name: String,
    /// Sockets of it in this network namespace.
    pub sockets: u64,
    /// Pages that buffers of all namespaces take; `None` where it does not count them.
    pub pages: Option<u64>,
    /// The module that it is in; `kernel` for none.
    pub module: String,
}

/// Pages that buffers of TCP and UDP sockets take, in all network namespaces (`net/ipv4/proc.c`,
/// `sockstat_seq_show`). Those of less than a page are in slab caches, too.
///
/// # Errors
/// When the file cannot be read.
pub fn buffer_pages(root: &Path) -> Result<u64> {
    let path = root.join("proc/net/sockstat");
    let bytes =
        super::read_bounded(&path, LIMIT).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(parse_sockstat(&bytes))
}

fn parse_sockstat(bytes: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(bytes);
    let pages = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace().skip_while(|word| *word != "mem");
        words.nth(1)?.parse::<u64>().ok()
    });
    pages.fold(0, u64::saturating_add)
}

/// The protocols that have sockets.
///
/// # Errors
/// When the file cannot be read.
pub fn protocols(root: &Path) -> Result<Vec<Protocol>> {
    let path = root.join("proc/net/protocols");
    let bytes =
        super::read_bounded(&path, LIMIT).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(parse_protocols(&bytes))
}

fn parse_protocols(bytes: &[u8]) -> Vec<Protocol> {
    let text = String::from_utf8_lossy(bytes);
    let protocol = |line: &str| {
        // Name, size, sockets, memory, pressure, headers, slab, module; a name may have blanks in it.
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let size = words.iter().skip(1).position(|word| word.parse::<u64>().is_ok())? + 1;
        let sockets = words.get(size + 1)?.parse().ok()?;
        let memory: i64 = words.get(size + 2)?.parse().ok()?;
        Some(Protocol {
            name: words[..size].join(" "),
            sockets,
            pages: u64::try_from(memory).ok(),
            module: (*words.get(size + 6)?).to_owned(),
        })
    };
    text.lines().skip(1).filter_map(protocol).filter(|protocol| protocol.sockets > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buffers_are_added_up() {
        let text = b"sockets: used 12\nTCP: inuse 1 orphan 0 tw 0 alloc 1 mem 155\nUDP: inuse 0 mem 7\nFRAG: inuse 0 memory 0\n";
        assert_eq!(parse_sockstat(text), 162);
    }

    #[test]
    fn protocols_with_sockets_are_kept() {
        let text = b"protocol  size sockets  memory press maxhdr  slab module     cl co\nPACKET    1600      0      -1   NI       0   no   kernel      n  n\nUNIX-STREAM 1152      6      -1   NI       0   yes  kernel      y  n\nTCPv6     2432      3     155   no     192   yes  ipv6      y  y\n";
        let found = parse_protocols(text);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].name.as_str(), found[0].pages), ("UNIX-STREAM", None));
        assert_eq!((found[1].module.as_str(), found[1].pages), ("ipv6", Some(155)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300), line in "[A-Z 0-9a-z-]{0,60}") {
            let _ = (parse_sockstat(&bytes), parse_protocols(&bytes), parse_protocols(format!("\n{line}").as_bytes()));
        }
    }
}
