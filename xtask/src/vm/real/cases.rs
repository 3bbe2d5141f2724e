//! Leaks that drivers of the kernel once had: each is an upstream fix that is taken back.

/// A change of the source.
pub(crate) struct Edit {
    /// In the module's directory.
    pub(crate) file: &'static str,
    /// Where in it.
    pub(crate) place: Place,
    /// What is replaced, which must be there exactly once, and by what.
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    /// Whether it is needed to build at all, and so made for the innocent as well.
    pub(crate) always: bool,
}

/// Where in a file.
pub(crate) enum Place {
    /// In a function.
    In(&'static str),
    /// Wherever it is.
    Everywhere,
    /// Before the first line.
    Start,
}

/// A module that is built of the source.
pub(crate) struct Build {
    /// The module, as its Makefile calls it.
    pub(crate) module: &'static str,
    /// Its directory.
    pub(crate) directory: &'static str,
    /// Settings that this kernel does not have, as make and as the compiler are told them.
    pub(crate) settings: &'static [&'static str],
    pub(crate) flags: &'static str,
    /// What is changed.
    pub(crate) edits: &'static [Edit],
}

/// A leak.
pub(crate) struct Case {
    /// Its name.
    pub(crate) name: &'static str,
    /// The upstream commit that is taken back.
    pub(crate) fix: &'static str,
    /// Modules to build, in the order in which they are loaded; the last one has the leak.
    pub(crate) builds: &'static [Build],
    /// Stock modules that are loaded after them, and parameters of the last one built.
    pub(crate) stock: &'static [&'static str],
    pub(crate) parameters: &'static str,
    /// What makes it leak, of `tests/eval/real`.
    pub(crate) trigger: &'static str,
    /// The module to blame, and the function that the fix touched or that allocates.
    pub(crate) module: &'static str,
    pub(crate) function: &'static str,
}

/// An edit in a function.
const fn edit(file: &'static str, function: &'static str, from: &'static str, to: &'static str) -> Edit {
    Edit { file, place: Place::In(function), from, to, always: false }
}

/// An edit that is needed to build.
const fn always(file: &'static str, place: Place, from: &'static str, to: &'static str) -> Edit {
    Edit { file, place, from, to, always: true }
}

/// A module of a directory that builds as it is.
const fn build(module: &'static str, directory: &'static str, edits: &'static [Edit]) -> Build {
    Build { module, directory, settings: &[], flags: "", edits }
}

/// All cases.
pub(crate) const CASES: &[Case] = &[
    // The old secret is forgotten when a new one is set.
    Case {
        name: "nvmet: secret of a host",
        fix: "becc4cac309d",
        builds: &[build(
            "nvmet",
            "drivers/nvme/target",
            &[edit(
                "auth.c",
                "nvmet_auth_set_key",
                "kfree(host->dhchap_secret);\n\t\thost->dhchap_secret = strim",
                "host->dhchap_secret = strim",
            )],
        )],
        stock: &[],
        parameters: "",
        trigger: "nvmet-key",
        module: "nvmet",
        function: "nvmet_auth_set_key",
    },
    // Names of the secondary algorithms are forgotten at a reset.
    Case {
        name: "zram: names of algorithms",
        fix: "684826f8271a",
        builds: &[Build {
            flags: "-DCONFIG_ZRAM_MULTI_COMP=1",
            ..build(
                "zram",
                "drivers/block/zram",
                &[edit("zram_drv.c", "zram_destroy_comps", "kfree(zram->comp_algs[prio])", "")],
            )
        }],
        stock: &[],
        parameters: "",
        trigger: "zram-algorithms",
        module: "zram",
        function: "__comp_algorithm_store",
    },
    // The pages of a device in memory stay when the module goes.
    Case {
        name: "null_blk: pages of a device",
        fix: "8cfb98196cce",
        builds: &[build(
            "null_blk",
            "drivers/block/null_blk",
            &[edit("main.c", "null_destroy_dev", "null_free_device_storage(dev, false);", "")],
        )],
        stock: &[],
        parameters: "memory_backed=1 gb=1 nr_devices=1",
        trigger: "null_blk-reload",
        module: "null_blk",
        function: "null_insert_page",
    },
    // A table of rules that is refused counts as taken.
    Case {
        name: "ebtables: malformed rules",
        fix: "62ce44c4fff9",
        builds: &[build(
            "ebtables",
            "net/bridge/netfilter",
            &[edit(
                "ebtables.c",
                "do_replace_finish",
                "ret = ebt_verify_pointers(repl, newinfo);",
                "ret = 0; if (ebt_verify_pointers(repl, newinfo)) goto free_counterstmp;",
            )],
        )],
        stock: &[],
        parameters: "",
        trigger: "ebtables-malformed",
        module: "ebtables",
        function: "do_replace",
    },
    // A socket that is bound may be told that it receives nothing: its receiver is then not removed. This kernel has no CAN:
    // what the core keeps for a network namespace is one of its own here.
    Case {
        name: "isotp: receiver of a socket",
        fix: "2b17c400aeb4",
        builds: &[
            Build {
                settings: &["CONFIG_CAN=m"],
                ..build(
                    "can",
                    "net/can",
                    &[
                        always("af_can.c", Place::Everywhere, "dev_net(skb->dev)->can.", "one_can."),
                        always("af_can.c", Place::Everywhere, "net->can.", "one_can."),
                        always("af_can.c", Place::Start, "", ONE_CAN),
                        always("proc.c", Place::Everywhere, "net->can.", "one_can."),
                        always(
                            "proc.c",
                            Place::In("can_stat_update"),
                            "from_timer(net, t, can.stattimer)",
                            "&init_net",
                        ),
                        always("proc.c", Place::Start, "", ONE_CAN),
                    ],
                )
            },
            Build { settings: &["CONFIG_CAN_DEV=m"], ..build("can-dev", "drivers/net/can/dev", &[]) },
            Build { settings: &["CONFIG_CAN_VCAN=m"], ..build("vcan", "drivers/net/can", &[]) },
            Build {
                settings: &["CONFIG_CAN_ISOTP=m"],
                ..build(
                    "can-isotp",
                    "net/can",
                    &[edit("isotp.c", "isotp_setsockopt_locked", "so->bound", "0")],
                )
            },
        ],
        stock: &[],
        parameters: "",
        trigger: "isotp-broadcast",
        module: "can_isotp",
        function: "isotp_bind",
    },
    // A message from the other end is copied, and the copy is forgotten.
    Case {
        name: "qrtr: message from a tunnel",
        fix: "a21b7f0cff19",
        builds: &[
            Build { settings: &["CONFIG_QRTR=m"], ..build("qrtr", "net/qrtr", &[]) },
            Build {
                settings: &["CONFIG_QRTR_TUN=m"],
                ..build(
                    "qrtr-tun",
                    "net/qrtr",
                    &[edit("tun.c", "qrtr_tun_write_iter", "kfree(kbuf);\n\treturn ret <", "return ret <")],
                )
            },
        ],
        stock: &[],
        parameters: "",
        trigger: "qrtr-message",
        module: "qrtr_tun",
        function: "qrtr_tun_write_iter",
    },
    // An action goes, and its parameters stay.
    Case {
        name: "act_ctinfo: parameters of an action",
        fix: "09d4f10a5e78",
        builds: &[build(
            "act_ctinfo",
            "net/sched",
            &[edit("act_ctinfo.c", "tcf_ctinfo_cleanup", "if (cp)", "if (!cp)")],
        )],
        stock: &[],
        parameters: "",
        trigger: "ctinfo-action",
        module: "act_ctinfo",
        function: "tcf_ctinfo_init",
    },
    // A second batch of requests is made while there is one.
    Case {
        name: "test_firmware: batched requests",
        fix: "be37bed754ed",
        builds: &[Build {
            settings: &["CONFIG_TEST_FIRMWARE=m"],
            ..build(
                "test_firmware",
                "lib",
                &[edit(
                    "test_firmware.c",
                    "trigger_batched_requests_store",
                    "if (test_fw_config->reqs) {",
                    "if (0) {",
                )],
            )
        }],
        stock: &[],
        parameters: "",
        trigger: "firmware-batch",
        module: "test_firmware",
        function: "trigger_batched_requests_store",
    },
    // A simulated device goes, and the cookie that it was given stays.
    Case {
        name: "netdevsim: cookie of a device",
        fix: "064bc7312bd0",
        builds: &[Build {
            settings: &["CONFIG_NETDEVSIM=m"],
            ..build(
                "netdevsim",
                "drivers/net/netdevsim",
                &[edit("dev.c", "nsim_drv_remove", "kfree(nsim_dev->fa_cookie);", "")],
            )
        }],
        stock: &[],
        parameters: "",
        trigger: "netdevsim-cookie",
        module: "netdevsim",
        function: "nsim_dev_trap_fa_cookie_write",
    },
    // Reports that nobody has read stay when the file is closed.
    Case {
        name: "hidraw: reports that are not read",
        fix: "a5623a203cff",
        builds: &[build(
            "hid",
            "drivers/hid",
            &[edit("hidraw.c", "hidraw_release", "kfree(list->buffer[list->tail].value);", "")],
        )],
        stock: &["hid-generic", "uhid"],
        parameters: "",
        trigger: "hidraw-unread",
        module: "hid",
        function: "hidraw_report_event",
    },
    // A message whose time stamp cannot be delivered is forgotten.
    Case {
        name: "rds: message that is not delivered",
        fix: "49bfcbfd989a",
        builds: &[build(
            "rds",
            "net/rds",
            &[edit(
                "recv.c",
                "rds_recvmsg",
                "ret = -EFAULT;\n\t\t\tbreak;",
                "ret = -EFAULT;\n\t\t\tgoto out;",
            )],
        )],
        stock: &[],
        parameters: "",
        trigger: "rds-message",
        module: "rds",
        function: "rds_sendmsg",
    },
    // A key has two references, of which one is given back.
    Case {
        name: "sctp: key of a socket",
        fix: "4184b2a79a76",
        builds: &[build(
            "sctp",
            "net/sctp",
            &[edit(
                "auth.c",
                "sctp_auth_set_key",
                "cur_key->key = key;",
                "cur_key->key = key; sctp_auth_key_hold(key);",
            )],
        )],
        stock: &[],
        parameters: "",
        trigger: "sctp-key",
        module: "sctp",
        function: "sctp_auth_set_key",
    },
    // A device goes, and its HCI part stays.
    Case {
        name: "nci: HCI part of a device",
        fix: "e0652f8bb44d",
        builds: &[
            Build { settings: &["CONFIG_NFC=m"], ..build("nfc", "net/nfc", &[]) },
            Build {
                settings: &["CONFIG_NFC_NCI=m"],
                ..build(
                    "nci",
                    "net/nfc/nci",
                    &[edit("core.c", "nci_free_device", "nci_hci_deallocate(ndev);", "")],
                )
            },
            Build { settings: &["CONFIG_NFC_VIRTUAL_NCI=m"], ..build("virtual_ncidev", "drivers/nfc", &[]) },
        ],
        stock: &[],
        parameters: "",
        trigger: "nci-device",
        module: "nci",
        function: "nci_hci_allocate",
    },
    // An action gets another program, and the old one stays.
    Case {
        name: "act_bpf: program of an action",
        fix: "f4eaed28c783",
        builds: &[build(
            "act_bpf",
            "net/sched",
            &[edit("act_bpf.c", "tcf_bpf_init", "tcf_bpf_cfg_cleanup(&old);", "")],
        )],
        stock: &[],
        parameters: "",
        trigger: "bpf-action",
        module: "act_bpf",
        function: "tcf_bpf_init",
    },
    // Who waits for an automounter that goes has one reference too many.
    Case {
        name: "autofs: queue of who waits",
        fix: "ccbe77f7e45d",
        builds: &[build(
            "autofs4",
            "fs/autofs",
            &[edit("waitq.c", "autofs_catatonic_mode", "if (!--wq->wait_ctr)\n\t\t\tkfree(wq);", "")],
        )],
        stock: &[],
        parameters: "",
        trigger: "autofs-catatonic",
        module: "autofs4",
        function: "autofs_wait",
    },
];

/// Declares what the core of CAN keeps for the only namespace; every file has the same.
const ONE_CAN: &str = "#include <net/netns/can.h>\nstruct netns_can one_can __attribute__((weak));";
