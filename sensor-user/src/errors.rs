//! Errors as one line of text, for people. Called where an error ends: by commands, and by states that
//! `/statusz` shows.

/// An error with its causes, as `what: why`.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Many errors already quote their cause.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
