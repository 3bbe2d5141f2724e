//! The programs by what they watch.

pub(crate) mod bulk;
pub(crate) mod module;
pub(crate) mod page;
pub(crate) mod peek;
pub(crate) mod percpu;
pub(crate) mod rcu;
pub(crate) mod slab;
pub(crate) mod vmalloc;

/// Each program that captures stacks has a number, and a buffer of its own on every CPU.
pub(crate) mod capturing {
    pub(crate) const KMALLOC: u32 = 0;
    pub(crate) const CACHE_ALLOC: u32 = 1;
    pub(crate) const KMALLOC_NODE: u32 = 2;
    pub(crate) const CACHE_ALLOC_NODE: u32 = 3;
    pub(crate) const BULK: u32 = 4;
    pub(crate) const PAGE: u32 = 5;
    pub(crate) const VMALLOC: u32 = 6;
    pub(crate) const PERCPU: u32 = 7;
}
