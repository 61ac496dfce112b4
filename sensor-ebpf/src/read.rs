//! Reading kernel memory: the ways there are, behind one trait. Nothing here knows a structure.
//!
//! An absent offset reads as `None`; since offsets are verifier constants, such a read costs
//! nothing and is never even verified.

use core::{mem::MaybeUninit, num::NonZeroU64};

use aya_ebpf::helpers::generated;
use tokentrail_ebpf::ABSENT;
use zerocopy::FromBytes;

/// Reads members of the kernel structure at an address.
pub(crate) trait Read: Copy {
    /// What a pointer in this structure leads to.
    type Next: Read<Next = Self::Next>;
    /// This structure with some members at hand.
    type Glance<'a>: Read<Next = Self::Next>;

    /// Where the structure is; `None` where the verifier guards the address and reads are free.
    fn address(self) -> Option<u64>;

    /// The member at `offset`; `None` if this kernel has none or the address is bad.
    fn get<T: FromBytes + Copy>(self, offset: u32) -> Option<T>;

    /// The structure that the pointer at `offset` leads to; `None` for a null pointer as well.
    fn follow(self, offset: u32) -> Option<Self::Next>;

    /// Fetches `span` at once into `buffer`: members there then cost nothing further. Where the
    /// span is too wide, they are read one by one.
    fn glance<'a>(self, span: Span, buffer: &'a mut Buffer) -> Option<Self::Glance<'a>>;
}

/// Some bytes of a structure; `start` is a multiple of eight.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) start: u32,
    pub(crate) length: u32,
}

/// Stack memory for one glance.
pub(crate) struct Buffer(MaybeUninit<[u64; 16]>);

impl Buffer {
    /// Not zeroed: that would cost more than it saves.
    #[inline(always)]
    pub(crate) fn new() -> Self {
        Self(MaybeUninit::uninit())
    }
}

impl Span {
    #[inline(always)]
    fn fits(self) -> bool {
        self.length as usize <= size_of::<Buffer>()
    }
}

/// Any address, read with `bpf_probe_read_kernel`: bad ones fail, each read costs a call.
///
/// Never null, so that an `Option` of it is one word: the unset payload of a wider one may be
/// spilled to the stack and read back, which verifiers before 6.3 refuse.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probed(NonZeroU64);

impl Probed {
    /// The structure at `address`; `None` for null.
    #[inline(always)]
    pub(crate) fn at(address: u64) -> Option<Self> {
        NonZeroU64::new(address).map(Self)
    }

    /// The member at `offset`, itself a structure.
    #[inline(always)]
    pub(crate) fn member(self, offset: u32) -> Option<Self> {
        if offset == ABSENT { None } else { Self::at(self.0.get().wrapping_add(offset.into())) }
    }

    /// The structure whose member at `offset` this is.
    #[inline(always)]
    pub(crate) fn container(self, offset: u32) -> Option<Self> {
        if offset == ABSENT { None } else { Self::at(self.0.get().wrapping_sub(offset.into())) }
    }

    /// Element `index` of an array of pointers that starts here.
    #[inline(always)]
    pub(crate) fn element(self, index: u32) -> Option<Self> {
        let mut file = 0;
        copy(self.0.get().wrapping_add(u64::from(index) * 8), (&raw mut file).cast(), 8)?;
        Self::at(file)
    }

    /// Copies the string that the pointer at `offset` leads to, cut and NUL-terminated; an
    /// unreadable one is left empty.
    #[inline(always)]
    pub(crate) fn string<const N: usize>(self, offset: u32, into: &mut [u8; N]) -> Option<()> {
        into[0] = 0;
        let text = self.follow(offset)?;
        // SAFETY: `into` is writable for its N bytes; the helper checks the source.
        let length = unsafe {
            generated::bpf_probe_read_kernel_str(
                into.as_mut_ptr().cast(),
                N as u32,
                text.0.get() as *const _,
            )
        };
        if length < 0 { None } else { Some(()) }
    }

    /// Copies the bytes of the member at `offset`.
    #[inline(always)]
    pub(crate) fn bytes<const N: usize>(self, offset: u32, into: &mut [u8; N]) -> Option<()> {
        into[0] = 0;
        self.copy(offset, into.as_mut_ptr(), N as u32)
    }

    #[inline(always)]
    fn copy(self, offset: u32, into: *mut u8, length: u32) -> Option<()> {
        if offset == ABSENT {
            return None;
        }
        copy(self.0.get().wrapping_add(offset.into()), into, length)
    }
}

/// Copies from any address. `into` must be writable for `length` bytes, which the verifier checks.
#[inline(always)]
fn copy(from: u64, into: *mut u8, length: u32) -> Option<()> {
    // SAFETY: the verifier refuses a program that does not own the target; the helper checks the
    // source.
    let result = unsafe { generated::bpf_probe_read_kernel(into.cast(), length, from as *const _) };
    if result == 0 { Some(()) } else { None }
}

impl Read for Probed {
    type Next = Self;
    type Glance<'a> = Glance<'a>;

    #[inline(always)]
    fn address(self) -> Option<u64> {
        Some(self.0.get())
    }

    #[inline(always)]
    fn get<T: FromBytes + Copy>(self, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        self.copy(offset, value.as_mut_ptr().cast(), size_of::<T>() as u32)?;
        // SAFETY: written just now, and any bytes make a `T`.
        Some(unsafe { value.assume_init() })
    }

    #[inline(always)]
    fn follow(self, offset: u32) -> Option<Self> {
        Self::at(self.get(offset)?)
    }

    #[inline(always)]
    fn glance<'a>(self, span: Span, buffer: &'a mut Buffer) -> Option<Glance<'a>> {
        if span.fits() {
            self.copy(span.start, buffer.0.as_mut_ptr().cast(), span.length)?;
        }
        Some(Glance { base: self, span, buffer })
    }
}

/// A probed structure with a copy of some of its bytes.
#[derive(Clone, Copy)]
pub(crate) struct Glance<'a> {
    base: Probed,
    span: Span,
    buffer: &'a Buffer,
}

impl Read for Glance<'_> {
    type Next = Probed;
    type Glance<'a> = Self;

    #[inline(always)]
    fn address(self) -> Option<u64> {
        self.base.address()
    }

    #[inline(always)]
    fn get<T: FromBytes + Copy>(self, offset: u32) -> Option<T> {
        if !self.span.fits() {
            return self.base.get(offset);
        }
        let at = offset.wrapping_sub(self.span.start) as usize;
        let member = self.buffer.0.as_ptr().cast::<u8>().wrapping_add(at).cast::<T>();
        // SAFETY: any bytes make a `T`. That the member lies in what was copied is the business of
        // user space, which computes both; the verifier refuses anything else. Volatile, since to
        // the compiler an offset may be any.
        Some(unsafe { core::ptr::read_volatile(member) })
    }

    #[inline(always)]
    fn follow(self, offset: u32) -> Option<Probed> {
        Probed::at(self.get(offset)?)
    }

    #[inline(always)]
    fn glance(self, _: Span, _: &mut Buffer) -> Option<Self> {
        Some(self)
    }
}

/// An address whose type the verifier knows from BTF: loads are plain instructions. Other
/// addresses make the verifier refuse the program.
#[derive(Clone, Copy)]
pub(crate) struct Typed(*const u8);

impl Typed {
    /// # Safety
    ///
    /// The verifier must know `address` as a pointer to a kernel structure.
    #[inline(always)]
    pub(crate) unsafe fn new(address: *const u8) -> Self {
        Self(address)
    }

    /// The same structure, read with the helper from here on.
    #[inline(always)]
    pub(crate) fn probed(self) -> Option<Probed> {
        Probed::at(self.0 as u64)
    }
}

impl Read for Typed {
    type Next = Self;
    type Glance<'a> = Self;

    #[inline(always)]
    fn address(self) -> Option<u64> {
        None
    }

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
    fn glance(self, _: Span, _: &mut Buffer) -> Option<Self> {
        Some(self)
    }
}
