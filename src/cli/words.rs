//! The words behind a command: `--option value` and `--option=value` are the same.

/// Reads words one after the other, and the values of options where they are asked for.
pub(crate) struct Words<'a> {
    rest: std::slice::Iter<'a, String>,
    /// What stood behind the `=` of the option that was read last.
    joined: Option<&'a str>,
}

impl<'a> Words<'a> {
    pub(crate) fn new(words: &'a [String]) -> Words<'a> {
        Words {
            rest: words.iter(),
            joined: None,
        }
    }

    /// The next option without its value, or the next word that is none; and the whole word as it was given.
    pub(crate) fn next(&mut self) -> Option<(&'a str, &'a str)> {
        let word = self.rest.next()?.as_str();
        let (flag, joined) = match word.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => (flag, Some(value)),
            _ => (word, None),
        };
        self.joined = joined;
        Some((flag, word))
    }

    /// The value of `flag`, the option that was read last.
    ///
    /// # Errors
    /// One sentence for the user, when nothing follows.
    pub(crate) fn value(&mut self, flag: &str) -> Result<String, String> {
        let value = self
            .joined
            .take()
            .or_else(|| self.rest.next().map(String::as_str));
        value
            .map(str::to_owned)
            .ok_or_else(|| format!("{flag} needs a value"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_behind_an_equals_sign_or_in_the_next_word() {
        let line = ["--a=1=2", "b=c", "--d", "--e", "--f=", "--g"].map(str::to_owned);
        let mut words = Words::new(&line);
        assert_eq!(words.next(), Some(("--a", "--a=1=2")));
        assert_eq!(words.value("--a"), Ok("1=2".to_owned()));
        assert_eq!(words.next(), Some(("b=c", "b=c")));
        assert_eq!(words.next(), Some(("--d", "--d")));
        assert_eq!(words.value("--d"), Ok("--e".to_owned()));
        assert_eq!(words.next(), Some(("--f", "--f=")));
        assert_eq!(words.value("--f"), Ok(String::new()));
        assert_eq!(words.next(), Some(("--g", "--g")));
        assert_eq!(words.value("--g"), Err("--g needs a value".to_owned()));
        assert_eq!(words.next(), None);
    }

    #[test]
    fn the_value_of_one_option_is_never_that_of_the_next() {
        let line = ["--json=yes", "--ring", "/r"].map(str::to_owned);
        let mut words = Words::new(&line);
        assert_eq!(words.next(), Some(("--json", "--json=yes")));
        assert_eq!(words.next(), Some(("--ring", "--ring")));
        assert_eq!(words.value("--ring"), Ok("/r".to_owned()));
    }
}
