//! Pages, of which nothing but a stack says where they come from.

use std::{
    io::{Read as _, Write as _},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    thread::sleep,
    time::{Duration, Instant},
};

use leaktrace_tests::{Trace, number, require_root, turn, within};
use serde_json::Value;

/// Blocks of a mebibyte, and how often one is taken.
const BLOCKS: u64 = 48;
const EACH: Duration = Duration::from_millis(150);
/// Times that a pipe is filled and emptied for each, which takes 14 single pages and gives them back.
const FILLED: u32 = 250;
const PIPE: usize = 64 << 10;

/// A packet socket with a ring of one block of so many bytes (`net/packet/af_packet.c`).
fn ring(bytes: u32) -> OwnedFd {
    const PACKET_RX_RING: i32 = 5;
    let request = [bytes, 1, 2_048, bytes / 2_048];
    // SAFETY: the descriptor is checked and owned by nobody else; the request is as long as is said.
    unsafe {
        let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
        assert!(socket >= 0, "{}", std::io::Error::last_os_error());
        let socket = OwnedFd::from_raw_fd(socket);
        let length = size_of_val(&request) as u32;
        let set = libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            PACKET_RX_RING,
            request.as_ptr().cast(),
            length,
        );
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
        socket
    }
}

/// Thousands of single pages that come and go for each block use up what stacks may cost: the few large ones have theirs all
/// the same, and what has none is nobody's finding.
#[test]
fn large_blocks_are_seen_beside_many_single_pages() {
    require_root();
    let _turn = turn();
    let trace = Trace::start(&[
        "--duration",
        "5m",
        "--interval",
        "300ms",
        "--min-age",
        "500ms",
        "--family",
        "page",
        "--top",
        "40",
    ]);
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let mut buffer = vec![1; PIPE];
    let mut rings = Vec::new();
    let begun = Instant::now();
    for block in 1..=BLOCKS {
        rings.push(ring(1 << 20));
        for _ in 0..FILLED {
            writer.write_all(&buffer).unwrap();
            reader.read_exact(&mut buffer).unwrap();
        }
        sleep((EACH * block as u32).saturating_sub(begun.elapsed()));
    }
    let report = trace.stop();
    let allocated: f64 = report["findings"].as_array().unwrap().iter().map(|f| number(&f["allocated"])).sum();
    let first = &report["findings"][0];
    assert_eq!(first["verdict"], "suspect", "{first:#}");
    assert!(
        first["responsible"]["symbol"].as_str().is_some_and(|symbol| symbol.contains("packet_set_ring")
            || symbol.contains("alloc_pg_vec")
            || symbol.contains("alloc_one_pg_vec_page")),
        "{first:#}"
    );
    assert_eq!(first["cache"], "pages-1024k");
    within(number(&first["live"]["objects"]), BLOCKS as f64, 0.02);
    assert!(allocated > (BLOCKS * u64::from(FILLED)) as f64, "only {allocated} pages came and went");
    let nobodys = |finding: &Value| finding["call_site"]["symbol"] == "(no stack)";
    assert!(!report["findings"].as_array().unwrap().iter().any(nobodys));
    drop(rings);
}
