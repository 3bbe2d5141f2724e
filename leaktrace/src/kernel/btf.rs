//! A reader of BTF: the type information that the kernel carries of itself.
//!
//! Only what leaktrace asks: where a struct's member lies, how large a struct is, what a
//! function's parameters are called, and the values of enumerators. Format:
//! `Documentation/bpf/btf.rst`, `include/uapi/linux/btf.h`.

use std::{collections::HashMap, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Buf as _, Bytes};

const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;

/// Nested anonymous members deeper than this are not the kernel's.
const MAX_NESTING: u32 = 16;

#[derive(Clone, Copy)]
struct Type {
    /// Offset of its name.
    name: u32,
    kind: u32,
    /// Number of members or parameters.
    count: usize,
    bitfields: bool,
    /// Its size in bytes or the id of another type, by kind.
    size_or_id: u32,
    /// Offset in the type section of what follows the header.
    tail: usize,
}

/// Parsed BTF.
pub struct Btf {
    types: Vec<Type>,
    section: Bytes,
    strings: Bytes,
    structs: HashMap<Bytes, usize>,
    functions: HashMap<Bytes, usize>,
    enumerators: Vec<usize>,
}

impl Btf {
    /// Reads the kernel's BTF, normally `/sys/kernel/btf/vmlinux`.
    ///
    /// # Errors
    /// When the file cannot be read or is no BTF.
    pub fn read(path: &Path) -> Result<Self> {
        let data = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&data.into()).with_context(|| format!("{} is no valid BTF", path.display()))
    }

    /// Parses raw BTF of this machine's byte order.
    ///
    /// # Errors
    /// When the data is not BTF or is cut short.
    pub fn parse(data: &Bytes) -> Result<Self> {
        ensure!(data.len() >= 24, "too short");
        let mut header = data.clone();
        ensure!(header.get_u16_ne() == 0xeb9f, "wrong magic number");
        header.advance(2);
        let header_len = header.get_u32_ne() as usize;
        let (type_off, type_len) = (header.get_u32_ne() as usize, header.get_u32_ne() as usize);
        let (str_off, str_len) = (header.get_u32_ne() as usize, header.get_u32_ne() as usize);
        let slice = |offset: usize, len: usize| -> Result<Bytes> {
            let start = header_len.saturating_add(offset);
            let end = start.saturating_add(len);
            ensure!(end <= data.len(), "cut short");
            Ok(data.slice(start..end))
        };
        let mut btf = Self {
            // Type 0 is void.
            types: vec![Type { name: 0, kind: 0, count: 0, bitfields: false, size_or_id: 0, tail: 0 }],
            section: slice(type_off, type_len)?,
            strings: slice(str_off, str_len)?,
            structs: HashMap::new(),
            functions: HashMap::new(),
            enumerators: Vec::new(),
        };
        btf.index()?;
        Ok(btf)
    }

    fn index(&mut self) -> Result<()> {
        let mut at = 0;
        while at < self.section.len() {
            ensure!(self.section.len() - at >= 12, "cut short in a type");
            let mut header = self.section.slice(at..at + 12);
            let name = header.get_u32_ne();
            let info = header.get_u32_ne();
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let entry = Type {
                name,
                kind,
                count,
                bitfields: info >> 31 != 0,
                size_or_id: header.get_u32_ne(),
                tail: at + 12,
            };
            let tail = match kind {
                1 | KIND_VAR | KIND_DECL_TAG => 4,
                KIND_ARRAY => 12,
                KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * count,
                KIND_ENUM | KIND_FUNC_PROTO => 8 * count,
                2 | 7..=11 | KIND_FUNC | 16 | 18 => 0,
                other => bail!("unknown kind of type {other}"),
            };
            at += 12 + tail;
            ensure!(at <= self.section.len(), "cut short in a type");
            let id = self.types.len();
            match kind {
                KIND_STRUCT => {
                    self.structs.entry(self.name(name)).or_insert(id);
                }
                KIND_FUNC => {
                    self.functions.entry(self.name(name)).or_insert(id);
                }
                KIND_ENUM | KIND_ENUM64 => self.enumerators.push(id),
                _ => {}
            }
            self.types.push(entry);
        }
        Ok(())
    }

    fn name(&self, offset: u32) -> Bytes {
        let tail = self.strings.slice((offset as usize).min(self.strings.len())..);
        let end = tail.iter().position(|&byte| byte == 0).unwrap_or(tail.len());
        tail.slice(..end)
    }

    fn words<const N: usize>(&self, entry: &Type, index: usize) -> [u32; N] {
        let start = entry.tail + index * N * 4;
        let mut data = self.section.slice(start..start + N * 4);
        std::array::from_fn(|_| data.get_u32_ne())
    }

    /// `sizeof` of a struct.
    pub fn struct_size(&self, name: &str) -> Option<u32> {
        self.structs.get(name.as_bytes()).map(|&id| self.types[id].size_or_id)
    }

    /// Offset in bytes of a struct's member, also of one in nested anonymous structs and unions.
    pub fn member_offset(&self, structure: &str, member: &str) -> Option<u32> {
        let &id = self.structs.get(structure.as_bytes())?;
        Some(self.find_member(id, member.as_bytes(), 0)? / 8)
    }

    fn find_member(&self, id: usize, member: &[u8], nesting: u32) -> Option<u32> {
        let entry = self.types.get(id)?;
        if nesting > MAX_NESTING || !(entry.kind == KIND_STRUCT || entry.kind == KIND_UNION) {
            return None;
        }
        for index in 0..entry.count {
            let [name, member_type, offset] = self.words(entry, index);
            let offset = if entry.bitfields { offset & 0x00ff_ffff } else { offset };
            let name = self.name(name);
            if name == member {
                return Some(offset);
            }
            if name.is_empty()
                && let Some(inner) = self.find_member(member_type as usize, member, nesting + 1)
            {
                return Some(offset + inner);
            }
        }
        None
    }

    /// How many elements a struct's member has that is an array.
    pub fn member_length(&self, structure: &str, member: &str) -> Option<u32> {
        let entry = self.types.get(*self.structs.get(structure.as_bytes())?)?;
        (0..entry.count).find_map(|index| {
            let [name, member_type, _] = self.words(entry, index);
            let array = self.types.get(member_type as usize)?;
            if self.name(name) != member.as_bytes() || array.kind != KIND_ARRAY {
                return None;
            }
            let [_, _, length] = self.words(array, 0);
            Some(length)
        })
    }

    /// Names of a function's parameters, in order.
    pub fn parameters(&self, function: &str) -> Option<Vec<String>> {
        let &id = self.functions.get(function.as_bytes())?;
        let proto = self.types.get(self.types[id].size_or_id as usize)?;
        (proto.kind == KIND_FUNC_PROTO).then(|| {
            (0..proto.count)
                .map(|index| {
                    let [name, _] = self.words(proto, index);
                    String::from_utf8_lossy(&self.name(name)).into_owned()
                })
                .collect()
        })
    }

    /// Whether there is such a function.
    pub fn has_function(&self, function: &str) -> bool {
        self.functions.contains_key(function.as_bytes())
    }

    /// Name of the type that a function returns; empty for a pointer.
    pub fn returns(&self, function: &str) -> Option<String> {
        let &id = self.functions.get(function.as_bytes())?;
        let proto = self.types.get(self.types[id].size_or_id as usize)?;
        let returned = self.types.get(proto.size_or_id as usize)?;
        Some(String::from_utf8_lossy(&self.name(returned.name)).into_owned())
    }

    /// Value of an enumerator of any enum.
    pub fn enumerator(&self, name: &str) -> Option<u64> {
        self.enumerators.iter().map(|&id| &self.types[id]).find_map(|entry| {
            (0..entry.count).find_map(|index| {
                let (enumerator, value) = if entry.kind == KIND_ENUM64 {
                    let [enumerator, low, high] = self.words(entry, index);
                    (enumerator, u64::from(high) << 32 | u64::from(low))
                } else {
                    let [enumerator, value] = self.words(entry, index);
                    (enumerator, u64::from(value))
                };
                (self.name(enumerator) == name.as_bytes()).then_some(value)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_the_running_kernel() {
        let btf = Btf::read(Path::new("/sys/kernel/btf/vmlinux")).unwrap();
        assert!(btf.struct_size("page").unwrap() >= 56);
        assert!(btf.member_offset("kmem_cache", "name").is_some());
        assert_eq!(btf.member_offset("page", "no_such_member"), None);
        let kfree = btf.parameters("__traceiter_kfree").unwrap();
        assert_eq!(kfree[1..3], ["call_site", "ptr"]);
        assert_eq!(btf.enumerator("BPF_MAP_TYPE_ARRAY"), Some(2));
        assert_eq!(btf.returns("vfree").as_deref(), Some(""));
        assert_eq!(btf.returns("capable").as_deref(), Some("bool"));
        // kernel/fork.c, include/linux/sched.h: TASK_COMM_LEN.
        assert_eq!(btf.member_length("task_struct", "comm"), Some(16));
        assert_eq!(btf.member_length("task_struct", "pid"), None);
        assert!(btf.has_function("vfree") && !btf.has_function("no_such_function"));
    }

    #[test]
    fn finds_members_in_anonymous_unions() {
        let btf = Btf::read(Path::new("/sys/kernel/btf/vmlinux")).unwrap();
        // include/linux/mm_types.h: the second word since the beginning of time.
        let head = btf.member_offset("page", "compound_head").or(btf.member_offset("page", "compound_info"));
        assert_eq!(head, Some(8));
    }

    proptest! {
        #[test]
        fn never_panics(data in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = Btf::parse(&data.into());
        }

        #[test]
        fn never_panics_after_a_good_header(tail in proptest::collection::vec(any::<u8>(), 0..256), types in 0..256_u32) {
            let mut data = 0xeb9f_u16.to_ne_bytes().to_vec();
            data.extend([1, 0]);
            for word in [24, 0, types, types, (tail.len() as u32).saturating_sub(types)] {
                data.extend(word.to_ne_bytes());
            }
            data.extend(tail);
            if let Ok(btf) = Btf::parse(&data.into()) {
                btf.member_offset("", "x");
                btf.parameters("");
                btf.enumerator("x");
            }
        }
    }
}
