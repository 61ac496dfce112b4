//! What may be the name of a Kubernetes object: where somebody else chose it, it goes into commands and paths.

/// Whether a pod, service account or namespace can have this name: a DNS subdomain, as RFC 1123 has it in lower
/// case. It is neither a flag nor more than one part of a path.
pub fn is_object_name(text: &str) -> bool {
    let is_end = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        bytes.first().is_some_and(is_end)
            && bytes.last().is_some_and(is_end)
            && bytes.iter().all(|byte| is_end(byte) || *byte == b'-')
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_dns_subdomain() {
        let (longest, too_long) = ("a".repeat(253), "a".repeat(254));
        for (text, is_name) in [
            ("cart-0", true),
            ("0", true),
            ("a.b-c.d", true),
            (&longest, true),
            (&too_long, false),
            ("", false),
            ("--all", false),
            ("cart-", false),
            ("a..b", false),
            ("../secrets", false),
            ("Cart", false),
            ("cart 0", false),
            ("cart-0&watch=1", false),
            ("%2e", false),
            ("kärt", false),
        ] {
            assert_eq!(is_object_name(text), is_name, "{text}");
        }
    }
}
