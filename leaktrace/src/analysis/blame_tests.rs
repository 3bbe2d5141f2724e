use super::*;
use proptest::prelude::*;

/// Who uses whom here.
struct Known;

impl Uses for Known {
    fn uses(&self, user: &str, library: &str) -> bool {
        matches!(
            (user, library),
            ("isotp", "can")
                | ("9p", "9pnet")
                | ("nf_tables", "nfnetlink")
                | ("amdgpu", "ttm")
                | ("ttm", "drm")
        )
    }

    fn is_library(&self, module: &str) -> bool {
        ["can", "9pnet", "nfnetlink", "ttm", "drm"].contains(&module)
    }
}

fn stack(text: &'static str) -> Vec<Option<Function<'static>>> {
    text.split(' ')
        .map(|name| match name.strip_suffix(']').and_then(|name| name.split_once('[')) {
            Some((symbol, module)) => Some(Function { symbol, module: Some(module) }),
            None if name == "?" => None,
            None => Some(Function { symbol: name, module: None }),
        })
        .collect()
}

#[test]
fn callers_of_the_page_allocator() {
    for (frames, place) in [
        // 6.12, a driver.
        (
            "? bpf_trace_run4 __traceiter_mm_page_alloc __alloc_pages_noprof alloc_pages_mpol_noprof drv_get[m] work",
            5,
        ),
        ("? bpf_trace_run4 __alloc_pages get_free_pages_noprof drv_get[m]", 4),
        // Wrappers that the compiler left in the module.
        ("? bpf_trace_run4 __alloc_pages_noprof alloc_pages_noprof[m] drv_get[m]", 4),
        (
            "? __traceiter_alloc_vmap_area alloc_vmap_area __get_vm_area_node __vmalloc_node_range_noprof vmalloc_noprof drv[m]",
            6,
        ),
        // A function without a symbol is somebody's.
        ("? bpf_trace_run4 __alloc_pages ? schedule", 3),
        ("? __traceiter_alloc_vmap_area alloc_vmap_area __vmalloc_node_range vmalloc drv[m]", 5),
        // fexit: the allocator's frame is the trampoline's, or is not there.
        ("? ? ? ? full_proxy_write", 2),
        ("? ? drv_get[m] full_proxy_write", 2),
        ("? ? kmem_cache_alloc_bulk_noprof napi_skb_cache_get", 3),
    ] {
        assert_eq!(call_site(&stack(frames), !frames.contains("vmap")), Place::At(place), "{frames}");
    }
}

#[test]
fn the_kernels_own_pages_are_counted_elsewhere() {
    for frames in [
        "? bpf_trace_run4 __alloc_frozen_pages_noprof alloc_slab_page new_slab ___slab_alloc kmalloc_noprof drv[m]",
        "? bpf_trace_run4 __alloc_pages allocate_slab ___slab_alloc __kmalloc drv[m]",
        "? bpf_trace_run4 __alloc_pages alloc_pages ___kmalloc_large_node __kmalloc_large_node_noprof drv[m]",
        "? bpf_trace_run4 __alloc_pages alloc_pages __vmalloc_area_node __vmalloc_node_range vmalloc drv[m]",
        "? bpf_trace_run4 __alloc_pages alloc_pages pcpu_populate_chunk pcpu_alloc drv[m]",
        "? bpf_trace_run4 __alloc_pages_noprof pte_alloc_one __pte_alloc handle_mm_fault",
    ] {
        assert_eq!(call_site(&stack(frames), true), Place::CountedElsewhere, "{frames}");
    }
}

#[test]
fn helpers_are_no_culprits() {
    for symbol in ["__alloc_skb", "kmemdup_noprof", "__kvmalloc_node_noprof", "kasprintf", "devm_kmalloc"] {
        assert!(Function { symbol, module: None }.is_helper(), "{symbol}");
    }
    for symbol in ["alloc_super", "foo_alloc_ctx", "kthread", "vm_area_dup", "skb_queue_tail"] {
        assert!(!Function { symbol, module: None }.is_helper(), "{symbol}");
    }
    // In a module only what comes from the kernel's headers.
    for (symbol, helper) in [("kzalloc_noprof", true), ("kmalloc_ring", false), ("vmalloc_table", false)] {
        assert_eq!(Function { symbol, module: Some("m") }.is_helper(), helper, "{symbol}");
    }
}

#[test]
fn notes_of_vmalloc() {
    assert!(notes_areas("alloc_vmap_area") && notes_areas("__get_vm_area_node.isra.0"));
    assert!(!notes_areas("__kvmalloc_node_noprof") && !notes_areas("vmalloc_table"));
}

#[test]
fn who_is_responsible() {
    for (frames, more, at) in [
        ("kmalloc_reserve __alloc_skb drv_rx[m] drv_poll[m]", "", Some(2)),
        ("__alloc_skb alloc_skb_with_frags sock_alloc_send_pskb unix_dgram_sendmsg", "", Some(3)),
        ("ext4_alloc_inode alloc_inode new_inode ext4_create", "", Some(3)),
        ("drv_new[m] drv_open[m]", "", Some(0)),
        ("drv_new.constprop.0[m] drv_open[m]", "drv_new", Some(1)),
        ("kmemdup_noprof", "", None),
        ("kvmalloc_node_noprof ? x", "", Some(1)),
        // A library's caller, however many functions of the library there are; of several the last one.
        ("can_rx_register[can] isotp_bind[isotp] __sys_bind", "", Some(1)),
        ("p9_fid_create[9pnet] p9_client_walk[9pnet] v9fs_fid_lookup[9p] lookup_open", "", Some(2)),
        ("drm_gem_new[drm] ttm_bo_init[ttm] ttm_bo_get[ttm] amdgpu_bo_create[amdgpu]", "", Some(3)),
        // What it takes within itself.
        (
            "hidraw_report_event[can] hid_report_raw_event[can] hid_input_report[can] uhid_char_write[isotp]",
            "",
            Some(0),
        ),
        // Its own, on behalf of the kernel; and a dispatcher that calls who has registered with it.
        ("can_rx_register[can] can_create[can] __sock_create", "", Some(0)),
        ("can_rx_register[can] __sock_create isotp_bind[isotp]", "", Some(0)),
        ("nf_tables_newrule[nf_tables] nfnetlink_rcv[nfnetlink] netlink_unicast", "", Some(0)),
    ] {
        assert_eq!(responsible(&stack(frames), &[more.to_owned()], &Known), at, "{frames}");
    }
}

#[test]
fn in_whose_name_code_runs() {
    for (frames, context_of) in [
        ("drv_ioctl[m] __x64_sys_ioctl do_syscall_64 entry_SYSCALL_64_after_hwframe", Context::Process),
        (
            "drv_rx[m] net_rx_action handle_softirqs irq_exit_rcu sysvec_apic_timer_interrupt vfs_read do_syscall_64",
            Context::Kernel,
        ),
        ("drv_work[m] process_one_work worker_thread kthread ret_from_fork", Context::Kernel),
        ("drv_get[m] full_proxy_write vfs_write", Context::Unknown),
        ("kthread[m] el0_svc", Context::Process),
    ] {
        assert_eq!(context(&stack(frames)), context_of, "{frames}");
    }
}

proptest! {
    #[test]
    fn any_stack_has_an_answer(names in prop::collection::vec(prop::option::of("[a-z_.]{0,12}"), 0..20)) {
        let frames: Vec<_> =
            names.iter().map(|name| name.as_deref().map(|symbol| Function { symbol, module: None })).collect();
        if let Place::At(index) = call_site(&frames, true) {
            prop_assert!(index < frames.len());
        }
    }
}
