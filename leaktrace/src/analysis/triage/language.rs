//! What a program is written in, by the files that it has mapped, and how memory of such a one is looked into.

use crate::proc::maps::Program;

/// What a program runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// A Java virtual machine.
    Java,
    /// Python.
    Python,
    /// Node.js, or another V8.
    Node,
    /// .NET.
    DotNet,
    /// Ruby.
    Ruby,
    /// PHP.
    Php,
    /// Perl.
    Perl,
    /// Erlang's virtual machine.
    Erlang,
    /// Go.
    Go,
    /// C, C++, Rust or alike.
    Native,
}

impl Language {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Java => "Java",
            Self::Python => "Python",
            Self::Node => "Node.js",
            Self::DotNet => ".NET",
            Self::Ruby => "Ruby",
            Self::Php => "PHP",
            Self::Perl => "Perl",
            Self::Erlang => "Erlang",
            Self::Go => "Go",
            Self::Native => "native code",
        }
    }

    /// What a program runs on, by its mappings and the name of its executable.
    pub fn of(program: &Program) -> Self {
        let has = |start: &str| program.files.iter().any(|file| file.starts_with(start));
        if has("libjvm.so") {
            Self::Java
        } else if has("libcoreclr.so") || has("libmono") {
            Self::DotNet
        } else if has("beam.smp") || has("beam.") {
            Self::Erlang
        } else if has("node") || has("libnode.so") || has("libv8.so") {
            Self::Node
        } else if has("libpython") || has("python") || has("pypy") {
            Self::Python
        } else if has("libruby") || has("ruby") {
            Self::Ruby
        } else if has("libphp") || has("php") {
            Self::Php
        } else if has("libperl") || has("perl") {
            Self::Perl
        } else if program.has_go_arena {
            Self::Go
        } else {
            Self::Native
        }
    }

    /// Commands that show where a process's memory came from, the best one first.
    pub fn next(self, pid: u32, program: &Program) -> Vec<String> {
        let has = |start: &str| program.files.iter().any(|file| file.starts_with(start));
        match self {
            Self::Java => vec![
                format!("jcmd {pid} GC.heap_info; jcmd {pid} GC.class_histogram"),
                format!(
                    "jcmd {pid} VM.native_memory summary   (started with -XX:NativeMemoryTracking=summary)"
                ),
            ],
            Self::Python => vec![
                format!("memray attach {pid}"),
                "tracemalloc.start() in it, and compare two snapshots".into(),
            ],
            Self::Node => vec![
                format!("kill -USR1 {pid}, then heap snapshots by chrome://inspect"),
                "node --heapsnapshot-signal=SIGUSR2 at its next start".into(),
            ],
            Self::DotNet => {
                vec![format!("dotnet-gcdump collect -p {pid}"), format!("dotnet-counters monitor -p {pid}")]
            }
            Self::Ruby => vec!["ObjectSpace.trace_object_allocations_start, then rbtrace and heapy".into()],
            Self::Php => vec!["memory_get_usage() by request; pm.max_requests bounds a worker".into()],
            Self::Perl => vec!["Devel::MAT on a dump of it".into()],
            Self::Erlang => vec!["recon_alloc:memory(allocated), and recon:proc_count(memory, 10)".into()],
            Self::Go => vec![
                "go tool pprof http://HOST:PORT/debug/pprof/heap   (where net/http/pprof is in)".into(),
                format!("memleak -p {pid}   (of bcc) finds cgo's"),
            ],
            Self::Native if has("libjemalloc") => vec![
                "MALLOC_CONF=prof:true,prof_leak:true at its next start, then jeprof".into(),
                format!("heaptrack --pid {pid}"),
            ],
            Self::Native if has("libtcmalloc") => {
                vec![
                    "HEAPPROFILE=/tmp/heap at its next start, then pprof".into(),
                    format!("heaptrack --pid {pid}"),
                ]
            }
            Self::Native => vec![
                format!("heaptrack --pid {pid}"),
                format!("memleak -p {pid}   (of bcc), or valgrind --leak-check=full at its next start"),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(files: &[&str], has_go_arena: bool) -> Program {
        Program { mappings: 10, files: files.iter().map(|&file| file.to_owned()).collect(), has_go_arena }
    }

    #[test]
    fn languages_are_told_by_mappings() {
        for (files, expected) in [
            (&["java", "libjvm.so", "libc.so.6"][..], Language::Java),
            (&["python3.11", "libc.so.6"], Language::Python),
            (&["uwsgi", "libpython3.11.so.1.0"], Language::Python),
            (&["node", "libstdc++.so.6"], Language::Node),
            (&["nginx", "libc.so.6"], Language::Native),
            (&["beam.smp"], Language::Erlang),
            (&["dotnet", "libcoreclr.so"], Language::DotNet),
        ] {
            assert_eq!(Language::of(&program(files, false)), expected, "{files:?}");
        }
        assert_eq!(Language::of(&program(&["etcd"], true)), Language::Go);
        let next = Language::Native.next(7, &program(&["x", "libjemalloc.so.2"], false));
        assert!(next[0].contains("MALLOC_CONF") && next[1].contains("--pid 7"));
        assert!(Language::Native.next(7, &program(&["x"], false))[0].contains("heaptrack --pid 7"));
    }
}
