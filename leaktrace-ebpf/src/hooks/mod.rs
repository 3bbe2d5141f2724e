//! The programs, by allocator family.

mod slab;
