//! Counts instructions of a loaded program as the kernel translated it: those that it runs through for
//! an open that is no token's. Belongs to `routes`.
//!
//! The count is of paths through the program's control flow, from its start to an `exit`. What the
//! program does first with an open that matched is to ask for the time: nothing is looked at from there on.
//! Both slots of a 64-bit constant count.
//!
//! The cheapest reason to leave is that the open failed, which is the first thing asked. The next one is
//! that of nearly every open of a machine: its file is on no tmpfs. So the shortest path with more than one
//! question is what an ordinary open runs through. The longest is that of no real open, but bounds all.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::{ProgramInfo, loaded_programs};

/// How many instructions the paths have on which an open does not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rejects {
    /// The cheapest reason to leave for an open that succeeds.
    pub(crate) ordinary: usize,
    /// The most that can be looked at in vain.
    pub(crate) longest: usize,
    /// The whole program.
    pub(crate) whole: usize,
}

/// How many instructions the kernel went through to be sure of the program of this name that was loaded
/// last; it gives up after a million. Kernel 5.16.
pub(crate) fn verified(name: &str) -> Option<u32> {
    loaded(name)?.verified_instruction_count().filter(|count| *count != 0)
}

/// The program of this name that was loaded last.
pub(crate) fn loaded(name: &str) -> Option<ProgramInfo> {
    loaded_programs()
        .flatten()
        .filter(|program| program.name_as_str() == Some(name))
        .max_by_key(ProgramInfo::id)
}

/// Counts those of the program of this name that was loaded last.
pub(crate) fn of_program(name: &str) -> Result<Rejects> {
    let program = loaded(name).with_context(|| format!("no program {name} is loaded"))?;
    let bytes = program.size_translated().context("the kernel does not tell the program's size")?;
    let program = program.fd()?;
    rejects(&translated(program.as_fd(), bytes)?, boundary()?)
}

/// The program's instructions, eight bytes each.
fn translated(program: BorrowedFd<'_>, bytes: u32) -> Result<Vec<[u8; 8]>> {
    /// The start of `struct bpf_prog_info`, which is all that is asked for.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        tag: [u8; 8],
        jited_len: u32,
        translated_len: u32,
        jited: u64,
        translated: u64,
    }
    /// That of `union bpf_attr` for this command.
    #[repr(C)]
    struct Attributes {
        fd: u32,
        info_len: u32,
        info: u64,
    }
    /// `enum bpf_cmd` of `include/uapi/linux/bpf.h`; kernel 4.13.
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;

    let mut instructions = vec![[0; 8]; bytes as usize / 8];
    let mut info = Info {
        translated_len: bytes,
        translated: instructions.as_mut_ptr() as u64,
        ..Info::default()
    };
    let mut attributes = Attributes {
        fd: program.as_raw_fd().try_into()?,
        info_len: size_of::<Info>().try_into()?,
        info: core::ptr::from_mut(&mut info) as u64,
    };
    let (command, size) = (BPF_OBJ_GET_INFO_BY_FD, size_of::<Attributes>());
    let pointer = core::ptr::from_mut(&mut attributes);
    // SAFETY: all three live until the call returns; the kernel writes `info_len` bytes to `info`,
    // which has as many, and `translated_len` to `instructions`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, pointer, size) };
    if result != 0 {
        return Err(std::io::Error::last_os_error())
            .context("the kernel does not show the program");
    }
    ensure!(
        info.translated != 0 && info.translated_len == bytes,
        "the kernel keeps the program's instructions to itself"
    );
    Ok(instructions)
}

/// How a call of `bpf_ktime_get_boot_ns` looks: helpers are called by their distance from a symbol.
fn boundary() -> Result<i32> {
    let symbols = fs::read_to_string("/proc/kallsyms").context("could not read /proc/kallsyms")?;
    let address = |name: &str| {
        let line = symbols.lines().find(|line| line.split(' ').nth(2) == Some(name));
        let text = line.and_then(|line| line.split(' ').next())?;
        u64::from_str_radix(text, 16).ok().filter(|address| *address != 0)
    };
    let helper = address("bpf_ktime_get_boot_ns").context("no address of bpf_ktime_get_boot_ns")?;
    let base = address("__bpf_call_base").context("no address of __bpf_call_base")?;
    i32::try_from(helper.cast_signed().wrapping_sub(base.cast_signed()))
        .context("bpf_ktime_get_boot_ns is too far from __bpf_call_base")
}

/// A 64-bit constant, which takes two slots.
const WIDE: u8 = 0x18;

/// Where an instruction leads, `include/uapi/linux/bpf.h` and `Documentation/bpf`.
enum Next {
    One(usize),
    Either(usize, usize),
    /// The program ends here.
    Exit,
    /// From here on it is about an open that matched.
    Match,
}

fn next(program: &[[u8; 8]], at: usize, boundary: i32) -> Result<Next> {
    let [code, registers, o0, o1, i0, i1, i2, i3] =
        *program.get(at).with_context(|| format!("a jump out of the program, to {at}"))?;
    let (offset, immediate) = (i16::from_le_bytes([o0, o1]), i32::from_le_bytes([i0, i1, i2, i3]));
    let after = at + 1;
    let jump = |distance: i32| {
        after.checked_add_signed(distance as isize).context("a jump before the program's start")
    };
    const JUMP: u8 = 0x05;
    const JUMP32: u8 = 0x06;
    Ok(match (code & 0x07, code & 0xf0) {
        _ if code == WIDE => Next::One(at + 2),
        (JUMP, 0x00) => Next::One(jump(offset.into())?),
        (JUMP32, 0x00) => Next::One(jump(immediate)?),
        (JUMP, 0x90) => Next::Exit,
        (JUMP, 0x80) => match registers >> 4 {
            0 if immediate == boundary => Next::Match,
            0 => Next::One(after),
            kind => bail!("instruction {at} calls no helper (kind {kind}): it cannot be counted"),
        },
        (JUMP | JUMP32, _) => Next::Either(after, jump(offset.into())?),
        _ => Next::One(after),
    })
}

/// The ways from an instruction to an exit.
#[derive(Clone, Copy)]
struct Ways {
    /// The shortest with no question, with one, and with more.
    shortest: [Option<usize>; 3],
    longest: usize,
}

impl Ways {
    const EXIT: Self = Self { shortest: [Some(1), None, None], longest: 1 };

    fn or(self, other: Self) -> Self {
        let [[a0, a1, a2], [b0, b1, b2]] = [self.shortest, other.shortest];
        Self {
            shortest: [least(a0, b0), least(a1, b1), least(a2, b2)],
            longest: self.longest.max(other.longest),
        }
    }

    fn after(self, asks: bool, size: usize) -> Self {
        let [none, one, more] = self.shortest.map(|way| way.map(|length| length + size));
        let shortest = if asks { [None, none, least(one, more)] } else { [none, one, more] };
        Self { shortest, longest: self.longest + size }
    }
}

fn least(one: Option<usize>, other: Option<usize>) -> Option<usize> {
    one.into_iter().chain(other).min()
}

fn rejects(program: &[[u8; 8]], boundary: i32) -> Result<Rejects> {
    // Depth first, without recursion: an instruction is done when all that it leads to is. `None`:
    // each way from it is that of an open that matched.
    let mut done: BTreeMap<usize, Option<Ways>> = BTreeMap::new();
    let mut path = vec![0];
    while let Some(&at) = path.last() {
        let next = next(program, at, boundary)?;
        let targets = match next {
            Next::One(target) => vec![target],
            Next::Either(one, other) => vec![one, other],
            Next::Exit | Next::Match => Vec::new(),
        };
        if let Some(open) = targets.iter().find(|target| !done.contains_key(target)) {
            ensure!(!path.contains(open), "a loop at instruction {open}, before anything matched");
            path.push(*open);
            continue;
        }
        let wide = program.get(at).is_some_and(|[code, ..]| *code == WIDE);
        let size = if wide { 2 } else { 1 };
        let ways = match next {
            Next::Exit => Some(Ways::EXIT),
            Next::Match => None,
            Next::One(_) | Next::Either(..) => targets
                .iter()
                .filter_map(|target| done.get(target).copied().flatten())
                .reduce(Ways::or)
                .map(|ways| ways.after(targets.len() > 1, size)),
        };
        done.insert(at, ways);
        path.pop();
    }
    let ways = done.get(&0).copied().flatten();
    let ways = ways.context("every open matches")?;
    let [.., ordinary] = ways.shortest;
    let ordinary = ordinary.context("no path asks twice and then leaves")?;
    let looked_at = (0..program.len()).filter(|at| done.contains_key(at));
    let reaches = looked_at.map(|at| next(program, at, boundary)).collect::<Result<Vec<_>>>()?;
    ensure!(reaches.iter().any(|it| matches!(it, Next::Match)), "no open matches");
    Ok(Rejects { ordinary, longest: ways.longest, whole: program.len() })
}

#[test]
fn ways_are_counted_up_to_an_exit_and_not_beyond_a_match() {
    const BOUNDARY: i32 = 77;
    let exit = [0x95, 0, 0, 0, 0, 0, 0, 0];
    let mov = [0xb7, 0, 0, 0, 0, 0, 0, 0];
    let jump_if = |distance: u8| [0x15, 0, distance, 0, 0, 0, 0, 0];
    let back = [0x05, 0, 0xfe, 0xff, 0, 0, 0, 0];
    let call = |helper: u8| [0x85, 0, 0, 0, helper, 0, 0, 0];
    let wide = [[0x18, 0, 0, 0, 0, 0, 0, 0], [0; 8]];
    let matched = call(77);
    let counted = |program: &[[u8; 8]]| rejects(program, BOUNDARY).ok();
    let of = |ordinary, longest, whole| Some(Rejects { ordinary, longest, whole });
    // Leaves after one question; or after a constant of two slots, another helper and a second one.
    let program = [jump_if(5), wide[0], wide[1], call(5), jump_if(1), matched, exit];
    assert_eq!(counted(&program), of(6, 6, 7));
    // What follows the match may be anything, a loop too.
    assert_eq!(counted(&[mov, jump_if(4), jump_if(3), matched, mov, back, exit]), of(4, 4, 7));
    for (program, why) in [
        (&[matched, exit][..], "every open matches"),
        (&[jump_if(1), mov, jump_if(0), exit][..], "none does"),
        (&[jump_if(1), matched, exit][..], "it asks once"),
        (&[mov, back, matched, exit][..], "it loops"),
        (&[jump_if(9), matched, exit][..], "it jumps out"),
        (&[[0x85, 0x10, 0, 0, 0, 0, 0, 0], matched, exit][..], "it calls a part of itself"),
    ] {
        assert_eq!(counted(program), None, "{why}");
    }
}
