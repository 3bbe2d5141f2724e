use super::*;
use proptest::prelude::*;

fn read(text: &str) -> Symbols {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("proc")).unwrap();
    std::fs::write(root.path().join("proc/kallsyms"), text).unwrap();
    Symbols::read(root.path()).unwrap()
}

#[test]
fn locates_in_kernel_and_module() {
    let symbols = read(
        "ffffffff81000000 T _stext\nffffffff81000100 t foo\nffffffff82000000 D vmemmap_base\n\
         ffffffffc0000010 t probe\t[drv]\nffffffffc0000000 t init\t[drv]\n",
    );
    let found = symbols.locate(0xffff_ffff_8100_0123).unwrap();
    assert_eq!((found.symbol, found.offset, found.module), ("foo", 0x23, None));
    let found = symbols.locate(0xffff_ffff_c000_0010).unwrap();
    assert_eq!((found.symbol, found.offset, found.module), ("probe", 0, Some("drv")));
    let found = symbols.locate_return(0xffff_ffff_c000_0010).unwrap();
    assert_eq!((found.symbol, found.offset), ("init", 0x10));
    // A page ends, and with it what is known: another module may be there, or one that is gone.
    assert_eq!(symbols.locate(0xffff_ffff_c000_0fff).unwrap().symbol, "probe");
    assert_eq!(symbols.locate(0xffff_ffff_c000_1000), None);
    assert_eq!(symbols.locate(0xffff_ffff_8100_1000), None);
    assert_eq!((end_behind(0x1000), end_behind(0x1bff), end_behind(0x1c00)), (0x2000, 0x2000, 0x3000));
    let pages = symbols.pages_of("drv");
    assert_eq!((pages.len(), &pages[0]), (1, &(0xffff_ffff_c000_0000..0xffff_ffff_c000_1000)));
    assert!(symbols.pages_of("other").is_empty());
    assert_eq!(symbols.locate(0x10), None);
    assert_eq!(symbols.locate(0xffff_ffff_9000_0000), None);
    assert_eq!(symbols.data_address("vmemmap_base"), Some(0xffff_ffff_8200_0000));
    assert_eq!(symbols.address_of("_stext"), Some(0xffff_ffff_8100_0000));
    assert_eq!(symbols.note(), None);
}

#[test]
fn of_modules_only_their_own_is_kept() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("proc")).unwrap();
    let text =
        "ffffffff81000000 T _stext\nffffffffc0000010 t probe\t[drv]\nffffffffc0000100 t other\t[others]\n";
    std::fs::write(root.path().join("proc/kallsyms"), text).unwrap();
    let only = Kallsyms::open(root.path()).unwrap().of_modules(&["drv".to_owned()]).unwrap();
    assert_eq!(only.locate(0xffff_ffff_c000_0018).map(|found| found.symbol), Some("probe"));
    assert_eq!((only.len(), only.names.as_str()), (1, "probe"));
}

#[test]
fn data_is_read_when_asked_for() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("proc")).unwrap();
    let text = "0000000000014300 A cpu_number\nffffffff82000000 D foo_list\nffffffff82000010 b foo_lock\n\
                ffffffff81000000 T foo\nffffffffc0000000 b sessions\t[drv]\n";
    std::fs::write(root.path().join("proc/kallsyms"), text).unwrap();
    let data = Symbols::read_data(root.path()).unwrap();
    assert_eq!(data.address_of("foo_list"), Some(0xffff_ffff_8200_0000));
    assert_eq!(data.address_of("foo"), None);
    assert_eq!(data.next_after(0xffff_ffff_8200_0000), Some(0xffff_ffff_8200_0010));
    let found = data.locate(0x14308).unwrap();
    assert_eq!((found.symbol, found.offset), ("cpu_number", 8));
    assert_eq!(data.locate(0xffff_ffff_c000_0008).unwrap().module, Some("drv"));
    assert_eq!(data.locate_in_modules(0xffff_ffff_c000_0008, 16).unwrap().symbol, "sessions");
    assert_eq!(data.locate_in_modules(0xffff_ffff_c000_0010, 16), None);
    assert_eq!(data.locate_in_modules(0xffff_ffff_8200_0001, 16), None);
}

/// The linker's markers are at the address of what they mark.
#[test]
fn markers_give_way_to_what_is_there() {
    let text = |order: [&str; 4]| order.map(|name| format!("ffffffffc0002000 t {name}\t[drv]\n")).concat();
    for order in [
        ["sessions", "__start_alloc_tags", "_etext", ".LC1"],
        ["__start_alloc_tags", "_stext", ".LC1", "sessions"],
    ] {
        assert_eq!(read(&text(order)).locate(0xffff_ffff_c000_2008).unwrap().symbol, "sessions");
    }
    assert!(!is_marker("_emit_one") && !is_marker("__stopped") && is_marker("__stop_alloc_tags"));
}

#[test]
fn hidden_and_empty_are_told() {
    assert!(read("").note().unwrap().contains("empty"));
    let hidden = read("0000000000000000 T _stext\n0000000000000000 T foo\n0000000000000000 t bar [m]\n");
    assert!(hidden.note().unwrap().contains("kptr_restrict") && hidden.is_empty());
}

proptest! {
    #[test]
    fn any_text_is_survived(text in "\\PC{0,200}", address: u64) {
        let symbols = read(&text);
        let _ = symbols.locate(address);
    }
}
