//! Readers of what the kernel says of itself. Each takes a root path, so that fixtures captured
//! elsewhere and the running system read alike.

pub mod iomem;
pub mod kpageflags;
pub mod slab;
