//! Offsets of kernel structure members, read from the running kernel's type information (BTF).
//!
//! Owns a small parser that knows just enough of the format to find members by name; it trusts
//! no byte of the input and keeps none of it. `kernel` calls [`layout`] once at start.
//!
//! Why at run time: rustc emits no CO-RE relocations, and layouts differ between builds of one
//! kernel version. A member that is found nowhere stays [`ABSENT`] and only switches its feature
//! off; the few that the filter cannot do without make an error.
//! Format: <https://docs.kernel.org/bpf/btf.html>

use std::{collections::HashMap, path::Path};

use thiserror::Error;
use tokentrail_ebpf::{ABSENT, Offsets};

/// Why there are no offsets.
#[derive(Debug, Error)]
pub enum BtfError {
    /// The kernel was built without BTF, or the configured file is not there.
    #[error(
        "cannot read kernel type information from {path}: {source}; the kernel needs \
         CONFIG_DEBUG_INFO_BTF=y, or name a BTF file of exactly this kernel"
    )]
    Unreadable {
        /// The file.
        path: String,
        /// What reading it said.
        source: std::io::Error,
    },
    /// The bytes are not BTF.
    #[error("{path} is not kernel type information: {reason}")]
    Malformed {
        /// The file.
        path: String,
        /// What was met.
        reason: &'static str,
    },
    /// A member without which nothing works.
    #[error("{path} has no {member}, which the open filter needs")]
    Missing {
        /// The file.
        path: String,
        /// `structure.member`.
        member: &'static str,
    },
}

/// Where the kernel shows its own BTF.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// What a kernel's BTF told.
#[derive(Debug)]
pub struct Layout {
    /// For the BPF object.
    pub offsets: Offsets,
    /// Members that this kernel does not have under any known name; their facts will be missing.
    pub absent: Vec<String>,
    /// The same of those that only the exit route reads, to see io_uring.
    pub absent_of_uring: Vec<String>,
}

/// Resolves all offsets from the BTF at `path`. The file's bytes are dropped before return.
pub fn layout(path: &Path) -> Result<Layout, BtfError> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path)
        .map_err(|source| BtfError::Unreadable { path: name.clone(), source })?;
    resolve(&bytes, &name)
}

/// [`layout`] of bytes that were read from `path`.
pub(crate) fn resolve(bytes: &[u8], path: &str) -> Result<Layout, BtfError> {
    let btf = Btf::parse(bytes)
        .map_err(|reason| BtfError::Malformed { path: path.to_owned(), reason })?;
    let need = |structure, members: &[&str], member| match btf.offset(structure, members) {
        ABSENT => Err(BtfError::Missing { path: path.to_owned(), member }),
        found => Ok(found),
    };
    let mut absent = Vec::new();
    let mut find = |structure: &str, members: &[&str]| {
        let found = btf.offset(structure, members);
        if found == ABSENT {
            absent.push(format!("{structure}.{}", members.join("|")));
        }
        found
    };
    let mut absent_of_uring = Vec::new();
    let mut find_uring = |structure: &str, members: &[&str]| {
        let found = btf.offset(structure, members);
        // Kernels without io_uring have none of its structures, and nothing is missed.
        if found == ABSENT && btf.size("io_kiocb") != ABSENT {
            absent_of_uring.push(format!("{structure}.{}", members.join("|")));
        }
        found
    };
    let have = |helper| u32::from(btf.enumerator("bpf_func_id", helper).is_some());
    let offsets = Offsets {
        have_task_btf: have("BPF_FUNC_get_current_task_btf"),
        have_snprintf: have("BPF_FUNC_snprintf"),
        arch: if cfg!(target_arch = "x86_64") { 1 } else { 2 },
        task_files: need("task_struct", &["files"], "task_struct.files")?,
        task_mm: find("task_struct", &["mm"]),
        task_real_parent: find("task_struct", &["real_parent"]),
        task_group_leader: find("task_struct", &["group_leader"]),
        task_tgid: find("task_struct", &["tgid"]),
        task_comm: find("task_struct", &["comm"]),
        task_start_boottime: find("task_struct", &["start_boottime", "real_start_time"]),
        task_signal: find("task_struct", &["signal"]),
        task_thread_pid: find("task_struct", &["thread_pid"]),
        task_cgroups: find("task_struct", &["cgroups"]),
        task_nsproxy: find("task_struct", &["nsproxy"]),
        task_cred: find("task_struct", &["cred"]),
        cred_uid: find("cred", &["uid"]),
        cred_euid: find("cred", &["euid"]),
        signal_tty: find("signal_struct", &["tty"]),
        tty_driver: find("tty_struct", &["driver"]),
        tty_index: find("tty_struct", &["index"]),
        tty_driver_major: find("tty_driver", &["major"]),
        tty_driver_minor_start: find("tty_driver", &["minor_start"]),
        files_fdt: need("files_struct", &["fdt"], "files_struct.fdt")?,
        fdt_fd: need("fdtable", &["fd"], "fdtable.fd")?,
        fdt_max_fds: btf.offset("fdtable", &["max_fds"]),
        files_fd_array: btf.offset("files_struct", &["fd_array"]),
        file_path: need("file", &["f_path"], "file.f_path")?,
        file_dentry: need("file", &["f_path.dentry"], "file.f_path.dentry")?,
        file_mnt: find("file", &["f_path.mnt"]),
        file_inode: need("file", &["f_inode"], "file.f_inode")?,
        file_op: need("file", &["f_op"], "file.f_op")?,
        file_flags: need("file", &["f_flags"], "file.f_flags")?,
        file_mode: need("file", &["f_mode"], "file.f_mode")?,
        dentry_name_len: need("dentry", &["d_name.len"], "dentry.d_name.len")?,
        dentry_name_ptr: need("dentry", &["d_name.name"], "dentry.d_name.name")?,
        // Renamed in 6.14.
        dentry_inline_name: need("dentry", &["d_shortname", "d_iname"], "dentry.d_iname")?,
        dentry_inline_len: btf.length("dentry", &["d_shortname", "d_iname"]),
        dentry_parent: need("dentry", &["d_parent"], "dentry.d_parent")?,
        inode_ino: need("inode", &["i_ino"], "inode.i_ino")?,
        inode_mode: need("inode", &["i_mode"], "inode.i_mode")?,
        inode_rdev: find("inode", &["i_rdev"]),
        inode_sb: need("inode", &["i_sb"], "inode.i_sb")?,
        sb_dev: need("super_block", &["s_dev"], "super_block.s_dev")?,
        sb_magic: need("super_block", &["s_magic"], "super_block.s_magic")?,
        mount_vfsmount: find("mount", &["mnt"]),
        mount_mountpoint: find("mount", &["mnt_mountpoint"]),
        mm_exe_file: find("mm_struct", &["exe_file"]),
        mm_arg_start: find("mm_struct", &["arg_start"]),
        mm_arg_end: find("mm_struct", &["arg_end"]),
        pid_level: find("pid", &["level"]),
        pid_numbers: find("pid", &["numbers"]),
        pid_size: btf.size("pid"),
        upid_size: btf.size("upid"),
        upid_nr: find("upid", &["nr"]),
        upid_ns: find("upid", &["ns"]),
        pidns_inum: find("pid_namespace", &["ns.inum"]),
        nsproxy_mnt_ns: find("nsproxy", &["mnt_ns"]),
        mntns_inum: find("mnt_namespace", &["ns.inum"]),
        css_set_dfl_cgrp: find("css_set", &["dfl_cgrp"]),
        css_set_memory: memory_controller(&btf),
        css_cgroup: find("cgroup_subsys_state", &["cgroup"]),
        cgroup_kn: find("cgroup", &["kn"]),
        kernfs_name: find("kernfs_node", &["name"]),
        // Renamed in 6.15, when it became an RCU pointer.
        kernfs_parent: find("kernfs_node", &["__parent", "parent"]),
        kernfs_id: find("kernfs_node", &["id"]),
        uring_ring: find_uring("trace_event_raw_io_uring_complete", &["ctx"]),
        // Kernel 5.19.
        uring_req: find_uring("trace_event_raw_io_uring_complete", &["req"]),
        uring_res: find_uring("trace_event_raw_io_uring_complete", &["res"]),
        io_kiocb_opcode: find_uring("io_kiocb", &["opcode"]),
        // Kernel 5.15; before, no request opened into the ring's table.
        io_open_file_slot: btf.offset("io_open", &["file_slot"]),
        // Since 6.13 the table holds nodes.
        io_ring_files: find_uring("io_ring_ctx", &["file_table.data.nodes", "file_table.files"]),
        io_rsrc_node_file: btf.offset("io_rsrc_node", &["file_ptr"]),
        task_thread_status: btf.offset("task_struct", &["thread_info.status"]),
        pt_regs_orig_ax: btf.offset("pt_regs", &["orig_ax"]),
        // Filled in below.
        dentry_glance: 0,
        dentry_glance_len: 0,
    };
    let o = &offsets;
    let (dentry_glance, dentry_glance_len) =
        span([(o.dentry_name_len, 4), (o.dentry_inline_name, 8), (o.dentry_parent, 8)]);
    let offsets = Offsets { dentry_glance, dentry_glance_len, ..offsets };
    Ok(Layout { offsets, absent, absent_of_uring })
}

/// Start, down to a multiple of eight, and length of the bytes that hold these members (offset,
/// size).
fn span<const N: usize>(members: [(u32, u32); N]) -> (u32, u32) {
    let start = members.iter().map(|(offset, _)| offset & !7).min().unwrap_or_default();
    let end = members.iter().map(|(offset, size)| offset.saturating_add(*size)).max();
    (start, end.unwrap_or_default() - start)
}

/// `css_set.subsys[memory_cgrp_id]`, an array of pointers.
fn memory_controller(btf: &Btf<'_>) -> u32 {
    let array = btf.offset("css_set", &["subsys"]);
    match btf.enumerator("cgroup_subsys_id", "memory_cgrp_id") {
        Some(index) if array != ABSENT && index < 64 => array + index * 8,
        Some(_) | None => ABSENT,
    }
}

/// How deep unnamed structures and typedefs may nest before input counts as corrupt. The kernel's
/// deepest chain that matters here has four.
const DEPTH: u32 = 16;
/// How many members may be looked at for one path: corrupt structures may contain themselves many
/// times over. `task_struct` has some 300.
const STEPS: u32 = 10_000;
/// How far the end of a name is looked for, bytes: longer than any symbol of a kernel (`KSYM_NAME_LEN`
/// is 512). Corrupt strings may end nowhere, and are looked at once a type and member.
const NAME: usize = 1024;

/// A parsed view: where each type starts, and which structures and enumerations have a name.
struct Btf<'a> {
    strings: &'a [u8],
    /// Index is type id − 1.
    types: Vec<Type<'a>>,
    /// First structure, union or enumeration of a name.
    named: HashMap<&'a [u8], u32>,
}

/// One `struct btf_type` with the data that follows it.
#[derive(Clone, Copy)]
struct Type<'a> {
    name: u32,
    info: u32,
    /// Byte size of structures, type id of references.
    size_or_type: u32,
    data: &'a [u8],
}

/// `enum` of `include/uapi/linux/btf.h`.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const PTR: u32 = 2;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FWD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const FLOAT: u32 = 16;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

impl Type<'_> {
    fn kind(&self) -> u32 {
        self.info >> 24 & 0x1f
    }

    fn kind_flag(&self) -> bool {
        self.info >> 31 == 1
    }
}

impl<'a> Btf<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, &'static str> {
        const MAGIC: u16 = 0xeb9f;
        let magic = bytes.first_chunk().ok_or("it is too short for a header")?;
        if u16::from_ne_bytes(*magic) != MAGIC {
            return Err("it does not start with the BTF magic number of this machine's byte order");
        }
        let header = Words(bytes.get(4..24).ok_or("it is too short for a header")?);
        let section = |offset, length| -> Option<&'a [u8]> {
            let start = usize::try_from(header.at(0)?.checked_add(header.at(offset)?)?).ok()?;
            let length = usize::try_from(header.at(length)?).ok()?;
            bytes.get(start..start.checked_add(length)?)
        };
        let mut rest = section(1, 2).ok_or("its type section ends beyond the file")?;
        let strings = section(3, 4).ok_or("its string section ends beyond the file")?;
        let mut btf = Self { strings, types: Vec::new(), named: HashMap::new() };
        while !rest.is_empty() {
            let (head, tail) =
                rest.split_at_checked(12).ok_or("its type section ends within a type")?;
            let head = Words(head);
            let mut found = Type {
                name: head.at(0).unwrap_or_default(),
                info: head.at(1).unwrap_or_default(),
                size_or_type: head.at(2).unwrap_or_default(),
                data: &[],
            };
            let entries = (found.info & 0xffff) as usize;
            let length = match found.kind() {
                kind::INT | kind::VAR | kind::DECL_TAG => 4,
                kind::ARRAY => 12,
                kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => entries * 12,
                kind::ENUM | kind::FUNC_PROTO => entries * 8,
                kind::PTR
                | kind::FWD
                | kind::TYPEDEF
                | kind::VOLATILE
                | kind::CONST
                | kind::RESTRICT
                | kind::FUNC
                | kind::FLOAT
                | kind::TYPE_TAG => 0,
                _ => return Err("it has a kind of type that this program does not know"),
            };
            (found.data, rest) =
                tail.split_at_checked(length).ok_or("its type section ends within a type")?;
            btf.types.push(found);
            let id = u32::try_from(btf.types.len()).map_err(|_| "it has too many types")?;
            if matches!(found.kind(), kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64)
                && let Some(name) = btf.string(found.name)
                && !name.is_empty()
            {
                btf.named.entry(name).or_insert(id);
            }
        }
        Ok(btf)
    }

    /// Byte offset in `structure` of the first of `members` that exists, each a path of names
    /// joined by dots; [`ABSENT`] if none does.
    fn offset(&self, structure: &str, members: &[&str]) -> u32 {
        let Some(structure) = self.named.get(structure.as_bytes()) else {
            return ABSENT;
        };
        let found = members.iter().find_map(|path| self.path(*structure, path));
        found.map_or(ABSENT, |(offset, _)| offset)
    }

    /// Bytes of the first of `members` that exists, a text; 0 if none does.
    fn length(&self, structure: &str, members: &[&str]) -> u32 {
        let structure = self.named.get(structure.as_bytes());
        let member = structure
            .and_then(|it| members.iter().find_map(|path| self.path(*it, path)))
            .and_then(|(_, member)| self.get(member));
        match member.map(|member| (member.kind(), member)) {
            Some((kind::ARRAY, array)) => Words(array.data).at(2).unwrap_or_default(),
            Some((kind::UNION, union)) => union.size_or_type,
            Some(_) | None => 0,
        }
    }

    /// Size of a structure in bytes, or [`ABSENT`].
    fn size(&self, structure: &str) -> u32 {
        self.named
            .get(structure.as_bytes())
            .and_then(|id| self.get(*id))
            .map_or(ABSENT, |found| found.size_or_type)
    }

    /// Value of an enumerator.
    fn enumerator(&self, enumeration: &str, name: &str) -> Option<u32> {
        let found = self.get(*self.named.get(enumeration.as_bytes())?)?;
        let width = if found.kind() == kind::ENUM { 8 } else { 12 };
        found
            .data
            .chunks_exact(width)
            .map(Words)
            .find(|entry| entry.at(0).and_then(|at| self.string(at)) == Some(name.as_bytes()))?
            .at(1)
    }

    /// Byte offset and type of the member.
    fn path(&self, structure: u32, path: &str) -> Option<(u32, u32)> {
        let mut at = structure;
        let mut offset: u32 = 0;
        let mut steps = STEPS;
        for name in path.split('.') {
            let (bits, member) = self.member(at, name.as_bytes(), DEPTH, &mut steps)?;
            if bits % 8 != 0 {
                return None;
            }
            offset = offset.checked_add(bits / 8)?;
            at = member;
        }
        (offset != ABSENT).then_some((offset, at))
    }

    /// Offset in bits and type of a member, looked for in unnamed members as well.
    fn member(
        &self,
        structure: u32,
        name: &[u8],
        depth: u32,
        steps: &mut u32,
    ) -> Option<(u32, u32)> {
        let found = self.aggregate(structure)?;
        let depth = depth.checked_sub(1)?;
        found.data.chunks_exact(12).map(Words).find_map(|entry| {
            *steps = steps.checked_sub(1)?;
            let (entry_name, entry_type, at) = (entry.at(0)?, entry.at(1)?, entry.at(2)?);
            // With the flag, the upper byte is the width of a bit field; 0 is no bit field.
            let (width, bits) =
                if found.kind_flag() { (at >> 24, at & 0x00ff_ffff) } else { (0, at) };
            match self.string(entry_name)? {
                b"" => {
                    let (inner, member) = self.member(entry_type, name, depth, steps)?;
                    Some((bits.checked_add(inner)?, member))
                }
                other if other == name && width == 0 => Some((bits, entry_type)),
                _ => None,
            }
        })
    }

    /// The structure or union behind typedefs and qualifiers.
    fn aggregate(&self, id: u32) -> Option<Type<'a>> {
        let mut found = self.get(id)?;
        for _ in 0..DEPTH {
            match found.kind() {
                kind::STRUCT | kind::UNION => return Some(found),
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    found = self.get(found.size_or_type)?;
                }
                _ => return None,
            }
        }
        None
    }

    fn get(&self, id: u32) -> Option<Type<'a>> {
        self.types.get(usize::try_from(id).ok()?.checked_sub(1)?).copied()
    }

    fn string(&self, offset: u32) -> Option<&'a [u8]> {
        let rest = self.strings.get(usize::try_from(offset).ok()?..)?;
        let rest = rest.get(..NAME).unwrap_or(rest);
        rest.get(..memchr::memchr(0, rest)?)
    }
}

/// Bytes as 32-bit words in this machine's byte order.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn at(&self, index: usize) -> Option<u32> {
        self.0.get(index * 4..)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
    }
}

#[cfg(test)]
mod tests;
