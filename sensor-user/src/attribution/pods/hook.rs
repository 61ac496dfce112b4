//! A command that the kubelet itself runs in a container, an exec probe or a lifecycle hook, and how
//! it is known again among processes. Pure.

/// A command that the kubelet runs in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook(pub Box<[Box<str>]>);

impl Hook {
    /// Whether a process's command is this one. A script's is that of its interpreter: the kernel
    /// puts that (and one argument, if the first line has any) before the script's path (execve(2)).
    pub(super) fn is(&self, command: &[Vec<u8>]) -> bool {
        let Some((program, rest)) = self.0.split_first() else { return false };
        let same = |words: &[Vec<u8>]| {
            words.len() == rest.len()
                && words.iter().zip(rest).all(|(word, rest)| *word == rest.as_bytes())
        };
        let as_script = |at: usize| {
            command.get(at).is_some_and(|script| found_as(script, program))
                && command.get(at + 1..).is_some_and(same)
        };
        let itself = command
            .split_first()
            .is_some_and(|(word, rest)| *word == program.as_bytes() && same(rest));
        itself || as_script(1) || as_script(2)
    }

    /// Memory that it takes, about.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|word| word.len() + size_of::<Box<str>>()).sum()
    }
}

/// Whether `path` is what a program's name leads to: a bare one is looked for in `PATH`.
fn found_as(path: &[u8], program: &str) -> bool {
    path == program.as_bytes()
        || (!program.contains('/')
            && path.strip_suffix(program.as_bytes()).is_some_and(|folder| folder.ends_with(b"/")))
}
