//! The resolver on made-up type information, and on whatever bytes one may be given.

use proptest::prelude::*;

use super::*;

/// Writes BTF as a compiler would.
#[derive(Default)]
struct Writer {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

const FLAG: u32 = 1 << 31;

impl Writer {
    fn new() -> Self {
        Self { strings: vec![0], ..Self::default() }
    }

    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = u32::try_from(self.strings.len()).unwrap();
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        at
    }

    fn words(&mut self, words: &[u32]) {
        self.types.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
    }

    fn head(&mut self, name: &str, info: u32, size_or_type: u32) -> u32 {
        let name = self.string(name);
        self.words(&[name, info, size_or_type]);
        self.count += 1;
        self.count
    }

    /// A structure or union; members are name, type, offset word.
    fn aggregate(&mut self, kind: u32, flag: u32, name: &str, members: &[(&str, u32, u32)]) -> u32 {
        let count = u32::try_from(members.len()).unwrap();
        let id = self.head(name, flag | kind << 24 | count, 64);
        for (member, of, at) in members {
            let member = self.string(member);
            self.words(&[member, *of, *at]);
        }
        id
    }

    fn bytes(&self) -> Vec<u8> {
        let types = u32::try_from(self.types.len()).unwrap();
        let strings = u32::try_from(self.strings.len()).unwrap();
        let mut bytes = 0xeb9f_u16.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for word in [24, 0, types, types, strings] {
            bytes.extend(u32::to_ne_bytes(word));
        }
        bytes.extend(&self.types);
        bytes.extend(&self.strings);
        bytes
    }
}

/// The shapes that kernels hide members in.
fn sample() -> Vec<u8> {
    let mut w = Writer::new();
    let int = w.head("int", kind::INT << 24, 4);
    w.words(&[32]);
    let named = w.aggregate(kind::STRUCT, 0, "qstr", &[("hash", int, 0), ("len", int, 32)]);
    let constant = w.head("", kind::CONST << 24, named);
    let alias = w.head("alias", kind::TYPEDEF << 24, constant);
    // As `d_name` since 6.18: `union { struct qstr __d_name; const struct qstr d_name; }`.
    let twins = w.aggregate(kind::UNION, 0, "", &[("__d_name", named, 0), ("d_name", alias, 0)]);
    let inner = w.aggregate(kind::STRUCT, 0, "", &[("deep", int, 16), ("", twins, 64)]);
    w.aggregate(
        kind::STRUCT,
        0,
        "dentry",
        &[("first", int, 0), ("", inner, 128), ("after", int, 384)],
    );
    w.aggregate(
        kind::STRUCT,
        FLAG,
        "flagged",
        &[("whole", int, 64), ("bits", int, 3 << 24 | 96), ("odd", int, 97)],
    );
    w.head("forward", kind::FWD << 24, 0);
    w.head("colors", kind::ENUM << 24 | 2, 4);
    let (red, green) = (w.string("RED"), w.string("GREEN"));
    w.words(&[red, 3, green, 7]);
    w.head("wide", kind::ENUM64 << 24 | 1, 8);
    let huge = w.string("HUGE");
    w.words(&[huge, 5, 1]);
    w.bytes()
}

#[test]
fn members_are_found_wherever_a_kernel_hides_them() {
    let bytes = sample();
    let btf = Btf::parse(&bytes).unwrap();
    let cases: [(&str, &[&str], u32); 12] = [
        ("dentry", &["first"], 0),
        ("dentry", &["after"], 48),
        ("dentry", &["deep"], 18),
        ("dentry", &["d_name"], 24),
        ("dentry", &["d_name.len"], 28),
        ("dentry", &["__d_name.len"], 28),
        ("dentry", &["renamed", "after"], 48),
        ("flagged", &["whole"], 8),
        // Bit fields have no byte offset.
        ("flagged", &["bits"], ABSENT),
        ("flagged", &["odd"], ABSENT),
        ("dentry", &["first.of_an_int"], ABSENT),
        ("forward", &["anything"], ABSENT),
    ];
    for (structure, members, offset) in cases {
        assert_eq!(btf.offset(structure, members), offset, "{structure} {members:?}");
    }
    assert_eq!(btf.size("dentry"), 64);
    assert_eq!(btf.size("nothing"), ABSENT);
    assert_eq!(btf.enumerator("colors", "GREEN"), Some(7));
    assert_eq!(btf.enumerator("wide", "HUGE"), Some(5));
    assert_eq!(btf.enumerator("colors", "BLUE"), None);
}

#[test]
fn a_structure_that_contains_itself_a_hundred_times_over_is_given_up_soon() {
    let mut w = Writer::new();
    let members = vec![("", 1, 0); 100];
    w.aggregate(kind::STRUCT, 0, "loop", &members);
    let bytes = w.bytes();
    assert_eq!(Btf::parse(&bytes).unwrap().offset("loop", &["x"]), ABSENT);
}

#[test]
fn names_that_never_end_are_given_up_soon() {
    let mut w = Writer::new();
    let members = vec![("", 0, 0); 9_000];
    w.aggregate(kind::STRUCT, 0, "odd", &members);
    // Each member's name: the first byte behind the structure's own.
    let own = w.strings.len();
    for member in w.types[12..].chunks_exact_mut(12) {
        member[..4].copy_from_slice(&u32::try_from(own).unwrap().to_ne_bytes());
    }
    w.strings.resize(own + (16 << 20), b'x');
    let bytes = w.bytes();
    let btf = Btf::parse(&bytes).unwrap();
    assert_eq!((btf.offset("odd", &["x"]), btf.size("odd")), (ABSENT, 64));
}

#[test]
fn what_is_no_btf_or_lacks_the_filters_members_is_one_clear_error() {
    let cases: [(&[u8], &str); 3] = [
        (b"", "it is too short"),
        (b"\x7fELF and so on and so forth", "it does not start with the BTF magic number"),
        (&sample(), "f has no task_struct.files, which the open filter needs"),
    ];
    for (bytes, text) in cases {
        let error = resolve(bytes, "f").unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    let error = layout(Path::new("/nonexistent")).unwrap_err().to_string();
    assert!(error.contains("/nonexistent") && error.contains("CONFIG_DEBUG_INFO_BTF"), "{error}");
}

/// Two layouts cannot be told apart by looking at one kernel, so this only proves that the names
/// are right wherever the tests happen to run.
#[test]
fn the_running_kernel_has_every_member() {
    let path = Path::new(KERNEL_BTF);
    if !path.exists() {
        return;
    }
    let layout = layout(path).unwrap();
    assert_eq!(layout.absent, Vec::<String>::new());
}

proptest! {
    #[test]
    fn corrupt_input_never_panics(
        at in any::<prop::sample::Index>(),
        value in any::<u32>(),
        length in any::<prop::sample::Index>(),
    ) {
        let mut bytes = sample();
        let at = at.index(bytes.len() - 4);
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        bytes.truncate(length.index(bytes.len() + 1));
        if let Ok(btf) = Btf::parse(&bytes) {
            for name in ["dentry", "flagged", "colors"] {
                let _ = (btf.offset(name, &["d_name.len"]), btf.size(name));
                let _ = btf.enumerator(name, "GREEN");
            }
        }
        let _ = resolve(&bytes, "f");
    }

    #[test]
    fn noise_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = resolve(&bytes, "f");
        let header = sample();
        bytes.splice(0..0, header[..24].iter().copied());
        let _ = resolve(&bytes, "f");
    }
}
