//! Reading kernel memory: the ways there are, behind one trait. Nothing here knows a structure.
//!
//! An absent offset reads as zero; since offsets are verifier constants, such a read costs nothing
//! and is never even verified.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated;
use tokentrail_ebpf::ABSENT;
use zerocopy::FromBytes;

use crate::maps::off;

/// Reads members of the kernel structure at an address.
pub(crate) trait Read: Copy {
    /// What a pointer in this structure leads to.
    type Next: Read<Next = Self::Next>;
    /// This structure with some members at hand.
    type Glance<'a>: Read<Next = Self::Next>;

    /// Where the structure is; `None` where the verifier guards the address and reads are free.
    fn address(self) -> Option<u64>;

    /// The member at `offset`; zero if this kernel has none or the address is bad.
    fn get<T: FromBytes + Copy>(self, offset: u32) -> T;

    /// The structure that the pointer at `offset` leads to; `None` for a null pointer as well.
    fn follow(self, offset: u32) -> Option<Self::Next>;

    /// Fetches `span` at once into `buffer`: members there then cost nothing further. Where the
    /// span is too wide, they are read one by one.
    fn glance<'a>(self, span: Span, buffer: &'a mut Buffer) -> Self::Glance<'a>;
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

/// A kernel structure that facts are read from. What is absent, null or bad reads as zeroes, and so
/// does what follows from it: a chain is checked once at its end.
pub(crate) trait Structure: Copy {
    /// Whether any address can be read, or only what the verifier knows the type of.
    const ANY_ADDRESS: bool;

    /// The current task.
    fn current() -> Self;

    /// What a program got as its argument.
    fn of(typed: Typed) -> Self;

    /// None.
    fn null() -> Self;

    /// Whether there is none.
    fn is_null(self) -> bool;

    /// Whether both are the same one.
    fn is(self, other: Self) -> bool;

    /// The member at `offset`; zero if this kernel has none or the address is bad.
    fn load<T: FromBytes + Copy>(self, offset: u32) -> T;

    /// The structure that the pointer at `offset` leads to, or null.
    fn next(self, offset: u32) -> Self;

    /// The structure whose member at `offset` this is; null where its type is not known.
    fn container(self, offset: u32) -> Self;

    /// Element `index` of an array of pointers that starts here; null where its type is not known.
    fn element(self, index: u32) -> Self;

    /// What is read of an element of an array of structures in this one; zero if it is out of reach.
    fn nth<T: FromBytes>(self, array: Array, index: u32, read: impl Fn(Self) -> T) -> T;

    /// Copies the bytes of the member at `offset`, zeroes if there are none.
    fn bytes<const N: usize>(self, offset: u32, into: &mut [u8; N]);

    /// Copies the string that the pointer at `pointer` leads to, cut and NUL-terminated; empty if it is
    /// unreadable. Where pointers to text cannot be followed, that is any that is not inline.
    fn string<const N: usize>(self, pointer: u32, inline: Inline, into: &mut [u8; N]);
}

/// An array of structures within one.
#[derive(Clone, Copy)]
pub(crate) struct Array {
    pub(crate) start: u32,
    pub(crate) stride: u32,
    /// How many elements its type has, whatever lies behind them.
    pub(crate) length: u32,
}

/// Where a structure holds short strings itself.
#[derive(Clone, Copy)]
pub(crate) struct Inline {
    /// Place of the text.
    pub(crate) start: u32,
    /// Bytes that are there, a NUL included; 0 where none are held.
    pub(crate) capacity: u32,
    /// Place of the text's length, without NUL.
    pub(crate) length: u32,
}

impl Inline {
    /// No strings.
    pub(crate) const NONE: Self = Self { start: ABSENT, capacity: 0, length: ABSENT };
}

/// Any address, read with `bpf_probe_read_kernel`; each read costs a call.
///
/// Its own methods never branch on a failure: the helper then leaves zeroes, and reading from null
/// fails again, so a chain is checked once at its end. This keeps the paths few that the verifier
/// has to walk, which on kernels before 6.6 decides whether the program loads at all.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probed(u64);

impl Probed {
    /// The structure at `address`.
    #[inline(always)]
    pub(crate) fn at(address: u64) -> Self {
        Self(address)
    }
}

impl Structure for Probed {
    const ANY_ADDRESS: bool = true;

    #[inline(always)]
    fn current() -> Self {
        // SAFETY: helper without arguments.
        Self(unsafe { generated::bpf_get_current_task() })
    }

    #[inline(always)]
    fn of(typed: Typed) -> Self {
        typed.probed()
    }

    #[inline(always)]
    fn null() -> Self {
        Self(0)
    }

    #[inline(always)]
    fn is_null(self) -> bool {
        self.0 == 0
    }

    #[inline(always)]
    fn is(self, other: Self) -> bool {
        self == other
    }

    #[inline(always)]
    fn load<T: FromBytes + Copy>(self, offset: u32) -> T {
        if offset == ABSENT {
            return T::new_zeroed();
        }
        let mut value = MaybeUninit::<T>::uninit();
        copy(self.0.wrapping_add(offset.into()), value.as_mut_ptr().cast(), size_of::<T>() as u32);
        // SAFETY: the helper writes its target also when it fails, and any bytes make a `T`.
        unsafe { value.assume_init() }
    }

    #[inline(always)]
    fn next(self, offset: u32) -> Self {
        Self(self.load(offset))
    }

    #[inline(always)]
    fn container(self, offset: u32) -> Self {
        Self(self.0.wrapping_sub(offset.into()))
    }

    #[inline(always)]
    fn element(self, index: u32) -> Self {
        Self(self.0.wrapping_add(u64::from(index) * 8)).next(0)
    }

    #[inline(always)]
    fn nth<T: FromBytes>(self, array: Array, index: u32, read: impl Fn(Self) -> T) -> T {
        let start = self.0.wrapping_add(array.start.into());
        read(Self(start.wrapping_add((index * array.stride).into())))
    }

    #[inline(always)]
    fn bytes<const N: usize>(self, offset: u32, into: &mut [u8; N]) {
        if offset == ABSENT {
            into[0] = 0;
        } else {
            copy(self.0.wrapping_add(offset.into()), into.as_mut_ptr(), N as u32);
        }
    }

    #[inline(always)]
    fn string<const N: usize>(self, pointer: u32, _: Inline, into: &mut [u8; N]) {
        let text = self.next(pointer);
        // SAFETY: `into` is writable for its N bytes; the helper checks the source and clears the
        // target if it is bad.
        unsafe {
            generated::bpf_probe_read_kernel_str(
                into.as_mut_ptr().cast(),
                N as u32,
                text.0 as *const _,
            )
        };
    }
}

/// Copies from any address, zeroes if it is bad. `into` must be writable for `length` bytes, which
/// the verifier checks.
#[inline(always)]
fn copy(from: u64, into: *mut u8, length: u32) {
    // SAFETY: the verifier refuses a program that does not own the target; the helper checks the
    // source.
    unsafe { generated::bpf_probe_read_kernel(into.cast(), length, from as *const _) };
}

impl Read for Probed {
    type Next = Self;
    type Glance<'a> = Glance<'a>;

    #[inline(always)]
    fn address(self) -> Option<u64> {
        Some(self.0)
    }

    #[inline(always)]
    fn get<T: FromBytes + Copy>(self, offset: u32) -> T {
        self.load(offset)
    }

    #[inline(always)]
    fn follow(self, offset: u32) -> Option<Self> {
        let next = self.next(offset);
        if next.is_null() { None } else { Some(next) }
    }

    #[inline(always)]
    fn glance<'a>(self, span: Span, buffer: &'a mut Buffer) -> Glance<'a> {
        if span.fits() {
            let from = self.0.wrapping_add(span.start.into());
            copy(from, buffer.0.as_mut_ptr().cast(), span.length);
        }
        Glance { base: self, span, buffer }
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
    fn get<T: FromBytes + Copy>(self, offset: u32) -> T {
        if !self.span.fits() {
            return self.base.load(offset);
        }
        let at = offset.wrapping_sub(self.span.start) as usize;
        let member = self.buffer.0.as_ptr().cast::<u8>().wrapping_add(at).cast::<T>();
        // SAFETY: any bytes make a `T`. That the member lies in what was copied is the business of
        // user space, which computes both; the verifier refuses anything else. Volatile, since to
        // the compiler an offset may be any.
        unsafe { core::ptr::read_volatile(member) }
    }

    #[inline(always)]
    fn follow(self, offset: u32) -> Option<Probed> {
        let next = Probed::at(self.get(offset));
        if next.is_null() { None } else { Some(next) }
    }

    #[inline(always)]
    fn glance(self, _: Span, _: &mut Buffer) -> Self {
        self
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
    pub(crate) fn probed(self) -> Probed {
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
    fn get<T: FromBytes + Copy>(self, offset: u32) -> T {
        if offset == ABSENT {
            return T::new_zeroed();
        }
        let member = self.0.wrapping_add(offset as usize).cast::<T>();
        // SAFETY: a load from a BTF pointer; the verifier checks the member and the kernel
        // handles the fault of a stale pointer (the load then yields zero).
        unsafe { core::ptr::read_volatile(member) }
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
    fn glance(self, _: Span, _: &mut Buffer) -> Self {
        self
    }
}

/// What a typed address leads to, read by plain instructions alone: for kernels that keep
/// `bpf_probe_read_kernel` from programs.
///
/// Null is asked for at each step, since newer verifiers want to see that for some pointers, and gone by
/// for the rest.
#[derive(Clone, Copy)]
pub(crate) struct Direct(*const u8);

/// Elements of an open array that are read: levels of pid namespaces, of which nested nodes have three.
const REACH: u32 = 5;

impl Structure for Direct {
    const ANY_ADDRESS: bool = false;

    #[inline(always)]
    fn current() -> Self {
        if off!(have_task_btf) == 0 {
            return Self::null();
        }
        // SAFETY: helper without arguments.
        Self(unsafe { generated::bpf_get_current_task_btf() }.cast_const().cast())
    }

    #[inline(always)]
    fn of(Typed(address): Typed) -> Self {
        Self(address)
    }

    #[inline(always)]
    fn null() -> Self {
        Self(core::ptr::null())
    }

    #[inline(always)]
    fn is_null(self) -> bool {
        self.0.is_null()
    }

    #[inline(always)]
    fn is(self, other: Self) -> bool {
        self.0 == other.0
    }

    #[inline(always)]
    fn load<T: FromBytes + Copy>(self, offset: u32) -> T {
        // SAFETY: what is not null has the type that the verifier knows.
        if self.is_null() { T::new_zeroed() } else { unsafe { Typed::new(self.0) }.get(offset) }
    }

    #[inline(always)]
    fn next(self, offset: u32) -> Self {
        if self.is_null() {
            return self;
        }
        // SAFETY: as above.
        match unsafe { Typed::new(self.0) }.follow(offset) {
            Some(Typed(next)) => Self(next),
            None => Self::null(),
        }
    }

    #[inline(always)]
    fn container(self, _: u32) -> Self {
        Self::null()
    }

    #[inline(always)]
    fn element(self, _: u32) -> Self {
        Self::null()
    }

    /// One question after the other: a computed place would be refused.
    #[inline(always)]
    fn nth<T: FromBytes>(self, array: Array, index: u32, read: impl Fn(Self) -> T) -> T {
        let mut found = T::new_zeroed();
        if self.is_null() {
            return found;
        }
        for at in 0..REACH {
            if at < array.length && index == at {
                let place = array.start.wrapping_add(at * array.stride);
                found = read(Self(self.0.wrapping_add(place as usize)));
            }
        }
        found
    }

    #[inline(always)]
    fn bytes<const N: usize>(self, offset: u32, into: &mut [u8; N]) {
        self.words(offset, N as u32, into);
    }

    #[inline(always)]
    fn string<const N: usize>(self, _: u32, inline: Inline, into: &mut [u8; N]) {
        into[0] = 0;
        if self.load::<u32>(inline.length) >= inline.capacity {
            return;
        }
        self.words(inline.start, inline.capacity, into);
    }
}

impl Direct {
    /// Copies `length` bytes of the member at `offset`, as many as there is room for, by words: both
    /// are a multiple of four.
    #[inline(always)]
    fn words<const N: usize>(self, offset: u32, length: u32, into: &mut [u8; N]) {
        let words = into.as_mut_ptr().cast::<u32>();
        for index in 0..N / 4 {
            let at = index as u32 * 4;
            if offset != ABSENT && at < length {
                let word = self.load(offset.wrapping_add(at));
                // SAFETY: within `into`. Texts lie at multiples of four in what they are a part of.
                unsafe { words.wrapping_add(index).write(word) };
            }
        }
    }
}

/// Notes in a record what it lacks, unless it is `present`.
///
/// In the record's memory, of which the verifier keeps no track: in a register each bit would double
/// the states that it tells apart, which on kernels before 6.6 decides whether the program loads.
#[inline(always)]
pub(crate) fn note_unless(present: bool, missing: &mut u32, bit: u32) {
    if !present {
        let missing = core::ptr::from_mut(missing);
        // SAFETY: a live word. Volatile keeps the compiler from holding it in a register.
        let before = unsafe { core::ptr::read_volatile(missing) };
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(missing, before | bit) };
    }
}
