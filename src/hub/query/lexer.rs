//! Text into tokens, each with its place. Shared by whatever has conditions: twin queries here, routes later.

use super::ParseError;

/// What stands in the text.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// A keyword, a function or part of an attribute; which of them, the parser decides.
    Word(String),
    /// `[[name]]`: part of an attribute, whatever it looks like.
    Name(String),
    Text(String),
    Number(f64),
    /// Operators and brackets, as written.
    Symbol(&'static str),
    End,
}

/// Longer ones first, so that `<=` is not read as `<` and `=`.
const SYMBOLS: [&str; 20] = [
    "<=", ">=", "!=", "<>", "||", "??", "=", "<", ">", "(", ")", "[", "]", ",", ".", "+", "-", "*", "/", "%",
];

/// All tokens with the byte where each begins; the last one is `End`.
///
/// # Errors
/// A character that begins nothing, a text or name without end, a number out of range.
pub fn tokens(text: &str) -> Result<Vec<(Token, usize)>, ParseError> {
    let mut lexer = Lexer { text, at: 0 };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_blanks()?;
        let at = lexer.at;
        let token = lexer.next()?;
        let is_end = token == Token::End;
        tokens.push((token, at));
        if is_end {
            return Ok(tokens);
        }
    }
}

/// Whether a name can be written without brackets.
pub fn is_word(name: &str) -> bool {
    word_bytes(name) == name.len() && !name.is_empty()
}

/// How much of the text is a word. A hyphen belongs to it between letters or digits (`$creation-time-utc`), so that a
/// subtraction needs blanks.
fn word_bytes(text: &str) -> usize {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
    let mut end = 0;
    for (at, c) in text.char_indices() {
        let is_first = at == 0;
        let joins = || c == '-' && !is_first && text[at + 1..].chars().next().is_some_and(is_part);
        if !(is_part(c) && !(is_first && c.is_numeric()) || joins()) {
            break;
        }
        end = at + c.len_utf8();
    }
    end
}

struct Lexer<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Lexer<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn error(&self, at: usize, reason: impl Into<String>) -> ParseError {
        ParseError::new(at, reason)
    }

    /// Blanks and comments.
    fn skip_blanks(&mut self) -> Result<(), ParseError> {
        loop {
            let rest = self.rest();
            let bare = rest.trim_start_matches([' ', '\t', '\r', '\n']);
            self.at += rest.len() - bare.len();
            let Some(comment) = bare.strip_prefix("/*") else {
                return Ok(());
            };
            let end = comment
                .find("*/")
                .ok_or_else(|| self.error(self.at, "a comment without end"))?;
            self.at += "/*".len() + end + "*/".len();
        }
    }

    fn next(&mut self) -> Result<Token, ParseError> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else {
            return Ok(Token::End);
        };
        if let Some(name) = rest.strip_prefix("[[") {
            let end = name.find("]]").ok_or_else(|| self.error(self.at, "[[ without ]]"))?;
            if end == 0 {
                return Err(self.error(self.at, "a name without characters"));
            }
            self.at += "[[".len() + end + "]]".len();
            return Ok(Token::Name(name[..end].to_owned()));
        }
        if first == '\'' || first == '"' {
            return self.text(first);
        }
        let second_is_digit = rest[first.len_utf8()..].starts_with(|c: char| c.is_ascii_digit());
        if first.is_ascii_digit() || first == '.' && second_is_digit && !self.follows_name() {
            return self.number();
        }
        let bytes = word_bytes(rest);
        if bytes > 0 {
            self.at += bytes;
            return Ok(Token::Word(rest[..bytes].to_owned()));
        }
        match SYMBOLS.into_iter().find(|symbol| rest.starts_with(symbol)) {
            Some(symbol) => {
                self.at += symbol.len();
                Ok(Token::Symbol(symbol))
            }
            None => Err(self.error(self.at, format!("the character {first:?} means nothing here"))),
        }
    }

    /// `.5` is a number, but not in `tags.5`.
    fn follows_name(&self) -> bool {
        let before = self.text[..self.at].chars().next_back();
        before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '$' | ']'))
    }

    // IoT Hub, routing query section 8.3: either quote; \' \" \\ \uXXXX.
    fn text(&mut self, quote: char) -> Result<Token, ParseError> {
        let start = self.at;
        let mut units: Vec<u16> = Vec::new();
        let mut characters = self.rest().char_indices().skip(1);
        while let Some((at, c)) = characters.next() {
            if c == quote {
                self.at = start + at + 1;
                let text = String::from_utf16(&units);
                return text
                    .map(Token::Text)
                    .map_err(|_| self.error(start, "half of a surrogate pair"));
            }
            if c != '\\' {
                units.extend_from_slice(c.encode_utf16(&mut [0; 2]));
                continue;
            }
            match characters.next() {
                Some((_, escaped @ ('\'' | '"' | '\\'))) => units.push(escaped as u16),
                Some((_, 'u')) => {
                    let mut unit = 0;
                    for _ in 0..4 {
                        let digit = characters.next().and_then(|(_, c)| c.to_digit(16));
                        let digit = digit.ok_or_else(|| self.error(start + at, "\\u needs four hexadecimal digits"))?;
                        unit = unit << 4 | digit as u16;
                    }
                    units.push(unit);
                }
                _ => return Err(self.error(start + at, "an unknown escape in a text")),
            }
        }
        Err(self.error(start, "a text without end"))
    }

    // IoT Hub, routing query section 8.3: integers, 0x hexadecimal, reals with exponent.
    fn number(&mut self) -> Result<Token, ParseError> {
        let rest = self.rest();
        let digits = |from: usize, radix: u32| {
            let digits = rest[from..].chars().take_while(|c| c.is_digit(radix));
            from + digits.count()
        };
        let (value, end) = if rest.starts_with("0x") || rest.starts_with("0X") {
            let end = digits(2, 16);
            let value = u64::from_str_radix(&rest[2..end], 16);
            (value.ok().map(|value| value as f64), end)
        } else {
            let mut end = digits(0, 10);
            if rest[end..].starts_with('.') {
                end = digits(end + 1, 10);
            }
            if rest[end..].starts_with(['e', 'E']) {
                let sign = usize::from(rest[end + 1..].starts_with(['+', '-']));
                let exponent = digits(end + 1 + sign, 10);
                if exponent > end + 1 + sign {
                    end = exponent;
                }
            }
            (rest[..end].parse().ok(), end)
        };
        let value = value.filter(|value: &f64| value.is_finite());
        let value = value.ok_or_else(|| self.error(self.at, "a number that is none, or too large"))?;
        if word_bytes(&rest[end..]) > 0 {
            return Err(self.error(self.at, "a number that goes on with letters"));
        }
        self.at += end;
        Ok(Token::Number(value))
    }
}
