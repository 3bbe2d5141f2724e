//! What has to hold before tracing, in the order in which it is cheapest to tell.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::{
    analysis::steps::Offers,
    kernel::{
        btf::Btf,
        layout::Layout,
        machine::{self, Machine},
        privilege,
        symbols::Symbols,
    },
    proof,
};

/// Where the kernel keeps its BTF.
const BTF_PATH: &str = "sys/kernel/btf/vmlinux";

/// The running kernel, found fit for tracing.
pub(super) struct Kernel {
    pub(super) machine: Machine,
    pub(super) symbols: Symbols,
    pub(super) layout: Layout,
}

/// Checks release, privilege, lockdown and BTF.
///
/// # Errors
/// What is missing, and what to do about it.
pub(super) fn probe(root: &Path) -> Result<Kernel> {
    let machine = Machine::current()?;
    machine.check_release()?;
    privilege::check()?;
    may_be_read(root)?;
    let btf = Btf::read(&root.join(BTF_PATH))?;
    let symbols = Symbols::read(root).unwrap_or_else(|_| Symbols::empty());
    let layout = Layout::resolve(&btf, &symbols, root).context("this kernel cannot be traced")?;
    Ok(Kernel { machine, symbols, layout })
}

/// Whether programs may read kernel memory, and can know what is in it.
fn may_be_read(root: &Path) -> Result<()> {
    if machine::lockdown(root).as_deref() == Some("confidentiality") {
        bail!(
            "the kernel is locked down (confidentiality): it lets no BPF program read kernel memory; start it with lockdown=integrity, or none"
        );
    }
    let path = root.join(BTF_PATH);
    if !path.exists() {
        bail!("this kernel has no BTF ({} is missing): it needs CONFIG_DEBUG_INFO_BTF=y", path.display());
    }
    Ok(())
}

/// What may be advised here. Nothing is loaded for it: it is what can be told cheaply, also by an ordinary user.
pub(super) fn offers(root: &Path, machine: Option<&Machine>) -> Offers {
    let refused = machine.map_or(Ok(()), Machine::check_release).and_then(|()| may_be_read(root)).err();
    Offers {
        no_trace: refused.map(|error| format!("{error:#}")),
        prove: proof::is_offered(root),
        shake: machine::may_drop_caches(root),
        sudo: !privilege::is_root() || std::env::var_os("SUDO_UID").is_some(),
        program: program(std::env::args().next()),
    }
}

/// How this program was called: by its name, or by a path, which a shell needs again.
fn program(called: Option<String>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%:".contains(c);
    match called {
        Some(path) if path.contains('/') && path.chars().all(plain) => path,
        Some(path) if path.contains('/') && !path.contains('\'') && !path.contains(char::is_control) => {
            format!("'{path}'")
        }
        _ => "leaktrace".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_called_as_it_was() {
        let program = |called: &str| program(Some(called.to_owned()));
        assert_eq!(program("leaktrace"), "leaktrace");
        assert_eq!(program("./target/leaktrace"), "./target/leaktrace");
        assert_eq!(program("/my tools/leaktrace"), "'/my tools/leaktrace'");
        assert_eq!(program("/it's/leaktrace"), "leaktrace");
        assert_eq!(super::program(None), "leaktrace");
    }
}
