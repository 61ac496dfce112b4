//! Reads the arguments of the current process word by word, for programs that may not contain
//! `bpf_probe_read_user`: where the kernel refuses its sister for kernel memory, loaders put an older
//! helper in the place of both, which is refused as well. Called by `task`.

use aya_ebpf::helpers::generated::bpf_snprintf;
use tokentrail_ebpf::TEXT_LEN;

use crate::maps::{self, off};

/// `%pus`: the text at an address of user space.
static WORD: [u8; 5] = *b"%pus\0";
/// Words that are read at most; with more, none are.
const MOST: u32 = 32;

/// Copies the start of `length` bytes that begin at `start` in user space, NUL-terminated words. Whether
/// all of them, or as many as there is room for, could be read. Kernel 5.13.
/// <https://github.com/torvalds/linux/commit/7b15523a989b63927c2bb08e9b5b0bbc10b58bef>
#[inline(always)]
pub(crate) fn copy<const N: usize>(start: u64, length: u64, into: &mut [u8; N]) -> bool {
    if off!(have_snprintf) == 0 || start == 0 {
        return false;
    }
    let wanted = if length > N as u64 { N as u64 } else { length };
    // The verifier knows a place's bounds and a length's, not their sum's: there is room for both.
    let Some(mut scratch) = maps::scratch() else { return false };
    // SAFETY: ring memory always holds some bytes.
    let text: &mut [u8; 2 * TEXT_LEN] = unsafe { scratch.assume_init_mut() };
    let mut at = 0_u64;
    for _ in 0..MOST {
        if at >= wanted {
            break;
        }
        // SAFETY: a live word. Volatile, so that the compiler keeps a bound that it knows of by itself.
        let place = unsafe { core::ptr::read_volatile(&raw const at) } as usize % TEXT_LEN;
        let mut address = start + at;
        let to = text.as_mut_ptr().wrapping_add(place);
        // SAFETY: `to` is writable for TEXT_LEN bytes; the helper checks the address.
        let copied = unsafe {
            bpf_snprintf(to.cast(), TEXT_LEN as u32, WORD.as_ptr().cast(), &raw mut address, 8)
        };
        if copied <= 0 {
            break;
        }
        at += copied.cast_unsigned();
    }
    for index in 0..N / 4 {
        let from = text.as_ptr().cast::<u32>().wrapping_add(index);
        // SAFETY: within `text`, which begins at a multiple of eight.
        let word = unsafe { core::ptr::read_volatile(from) };
        // SAFETY: within `into`, and at a multiple of four in what that is a part of.
        unsafe { into.as_mut_ptr().cast::<u32>().wrapping_add(index).write(word) };
    }
    // What cannot be read is an empty word, which no command begins with.
    let readable = text[0] != 0;
    scratch.discard(0);
    at >= wanted && readable
}
