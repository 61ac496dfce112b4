//! Reading kernel memory: the two ways there are, behind one trait. Nothing here knows a structure.
//!
//! An absent offset reads as `None`; since offsets are verifier constants, such a read costs
//! nothing and is never even verified.

use aya_ebpf::helpers::generated;
use tokentrail_ebpf::ABSENT;
use zerocopy::FromBytes;

/// Reads members of the kernel structure at an address.
pub(crate) trait Read: Copy {
    /// The member at `offset`; `None` if this kernel has none or the address is bad.
    fn get<T: FromBytes + Copy>(self, offset: u32) -> Option<T>;

    /// The structure that the pointer at `offset` leads to; `None` for a null pointer as well.
    fn follow(self, offset: u32) -> Option<Self>;

    /// The same address, read with the helper from here on.
    fn probed(self) -> Probed;
}

/// Any address, read with `bpf_probe_read_kernel`: bad ones fail, each read costs a call.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probed(*const u8);

/// An address whose type the verifier knows from BTF: loads are plain instructions. Other
/// addresses make the verifier refuse the program.
#[derive(Clone, Copy)]
pub(crate) struct Typed(*const u8);

impl Probed {
    /// The structure at `address`; `None` for null.
    #[inline(always)]
    pub(crate) fn at(address: u64) -> Option<Self> {
        if address == 0 { None } else { Some(Self(address as *const u8)) }
    }

    /// The member at `offset`, itself a structure.
    #[inline(always)]
    pub(crate) fn member(self, offset: u32) -> Option<Self> {
        if offset == ABSENT { None } else { Some(Self(self.0.wrapping_add(offset as usize))) }
    }

    /// The structure whose member at `offset` this is.
    #[inline(always)]
    pub(crate) fn container(self, offset: u32) -> Option<Self> {
        if offset == ABSENT { None } else { Some(Self(self.0.wrapping_sub(offset as usize))) }
    }

    /// Element `index` of an array of pointers that starts here.
    #[inline(always)]
    pub(crate) fn element(self, index: u32) -> Option<Self> {
        Self(self.0.wrapping_add(index as usize * size_of::<u64>())).follow(0)
    }

    /// Copies the string that the pointer at `offset` leads to, cut and NUL-terminated; an
    /// unreadable one is left empty.
    #[inline(always)]
    pub(crate) fn string<const N: usize>(self, offset: u32, into: &mut [u8; N]) -> Option<()> {
        into[0] = 0;
        let text = self.follow(offset)?;
        // SAFETY: `into` is writable for its N bytes; the helper checks the source.
        let length = unsafe {
            generated::bpf_probe_read_kernel_str(into.as_mut_ptr().cast(), N as u32, text.0.cast())
        };
        if length < 0 { None } else { Some(()) }
    }

    /// Copies the bytes of the member at `offset`.
    #[inline(always)]
    pub(crate) fn bytes<const N: usize>(self, offset: u32, into: &mut [u8; N]) -> Option<()> {
        into[0] = 0;
        let from = self.member(offset)?;
        // SAFETY: `into` is writable for its N bytes; the helper checks the source.
        let result = unsafe {
            generated::bpf_probe_read_kernel(into.as_mut_ptr().cast(), N as u32, from.0.cast())
        };
        if result == 0 { Some(()) } else { None }
    }
}

impl Read for Probed {
    #[inline(always)]
    fn get<T: FromBytes + Copy>(self, offset: u32) -> Option<T> {
        if offset == ABSENT {
            return None;
        }
        let mut value = T::new_zeroed();
        // SAFETY: `value` is writable for its size and any bytes make a `T`; the helper checks
        // the source.
        let result = unsafe {
            generated::bpf_probe_read_kernel(
                (&raw mut value).cast(),
                size_of::<T>() as u32,
                self.0.wrapping_add(offset as usize).cast(),
            )
        };
        if result == 0 { Some(value) } else { None }
    }

    #[inline(always)]
    fn follow(self, offset: u32) -> Option<Self> {
        Self::at(self.get(offset)?)
    }

    #[inline(always)]
    fn probed(self) -> Probed {
        self
    }
}

impl Typed {
    /// # Safety
    ///
    /// The verifier must know `address` as a pointer to a kernel structure.
    #[inline(always)]
    pub(crate) unsafe fn new(address: *const u8) -> Self {
        Self(address)
    }
}

impl Read for Typed {
    #[inline(always)]
    fn get<T: FromBytes + Copy>(self, offset: u32) -> Option<T> {
        if offset == ABSENT {
            return None;
        }
        let member = self.0.wrapping_add(offset as usize).cast::<T>();
        // SAFETY: a load from a BTF pointer; the verifier checks the member and the kernel
        // handles the fault of a stale pointer (the load then yields zero).
        Some(unsafe { core::ptr::read_volatile(member) })
    }

    #[inline(always)]
    fn follow(self, offset: u32) -> Option<Self> {
        if offset == ABSENT {
            return None;
        }
        let member = self.0.wrapping_add(offset as usize).cast::<*const u8>();
        // SAFETY: as in `get`; loaded as a pointer, so that the verifier keeps its type.
        let target = unsafe { core::ptr::read_volatile(member) };
        if target.is_null() { None } else { Some(Self(target)) }
    }

    #[inline(always)]
    fn probed(self) -> Probed {
        Probed(self.0)
    }
}
