//! Conditions: their parser, how they are written, and what they say of something that has attributes.
//!
//! ```text
//!   ??   OR   AND   NOT   = != <>   < <= > >= IN NIN   + - ||   * / %   -x      weakest to strongest
//! ```
//!
//! Values are three-valued: what is not there is undefined, and what is made of it mostly too (`None` here). It knows
//! neither devices nor messages: whoever evaluates hands in an [`Attributes`].

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

use serde_json::Value;

use super::ParseError;
use super::lexer::{Token, is_word, tokens};

/// Operators within operators; bounds the stack of everything that walks an expression.
const DEPTH_MAX: u32 = 32;
/// Calls of the parser within each other: parentheses count as well. Enough for any expression written with all of them.
const NESTING_MAX: u32 = 4 * DEPTH_MAX;

/// Words that are no attribute unless in brackets.
const RESERVED: [&str; 15] = [
    "SELECT", "TOP", "FROM", "WHERE", "GROUP", "BY", "AS", "AND", "OR", "NOT", "IN", "NIN", "TRUE", "FALSE", "NULL",
];

/// The name of an attribute: `tags.location.[[room no]]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(pub Vec<String>);

#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    Undefined,
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    Concatenate,
    /// The left side, or the right one where that is undefined.
    Coalesce,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Expression {
    Literal(Literal),
    Attribute(Path),
    IsDefined(Path),
    Not(Box<Self>),
    Negate(Box<Self>),
    /// AND of two or more.
    All(Vec<Self>),
    /// OR of two or more.
    Any(Vec<Self>),
    Compare(Comparison, Box<Self>, Box<Self>),
    Operate(Operator, Box<Self>, Box<Self>),
    /// `IN`, or `NIN` when negated.
    In {
        value: Box<Self>,
        list: Vec<Literal>,
        negated: bool,
    },
}

/// What an expression looks at. `None` is undefined.
pub trait Attributes {
    fn value(&self, path: &Path) -> Option<Datum<'_>>;
}

/// A value while it is being looked at.
#[derive(Clone, Debug, PartialEq)]
pub enum Datum<'a> {
    Null,
    Bool(bool),
    Number(f64),
    Text(Cow<'a, str>),
    /// An object or array: defined, and of a type that nothing else has.
    Compound(&'a Value),
}

impl<'a> From<&'a Value> for Datum<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            // IoT Hub, query section 8.5: numbers are doubles.
            Value::Number(number) => number.as_f64().map_or(Self::Null, Self::Number),
            Value::String(text) => Self::Text(Cow::Borrowed(text)),
            Value::Array(_) | Value::Object(_) => Self::Compound(value),
        }
    }
}

impl Literal {
    fn datum(&self) -> Option<Datum<'_>> {
        match self {
            Self::Undefined => None,
            Self::Null => Some(Datum::Null),
            Self::Bool(value) => Some(Datum::Bool(*value)),
            Self::Number(value) => Some(Datum::Number(*value)),
            Self::Text(text) => Some(Datum::Text(Cow::Borrowed(text))),
        }
    }
}

impl Comparison {
    // IoT Hub, query section 8.5, comparison details.
    fn of(self, left: &Datum<'_>, right: &Datum<'_>) -> Option<bool> {
        let ordering = match (left, right) {
            (Datum::Null, Datum::Null) => Some(Ordering::Equal),
            (Datum::Bool(left), Datum::Bool(right)) => Some(left.cmp(right)),
            (Datum::Number(left), Datum::Number(right)) => left.partial_cmp(right),
            (Datum::Text(left), Datum::Text(right)) if left == right => Some(Ordering::Equal),
            // Ordinal is by UTF-16 units, which is not the order of UTF-8 beyond the basic plane.
            (Datum::Text(left), Datum::Text(right)) => Some(left.encode_utf16().cmp(right.encode_utf16())),
            (Datum::Compound(_), Datum::Compound(_)) => return None,
            (
                Datum::Null | Datum::Bool(_) | Datum::Number(_) | Datum::Text(_) | Datum::Compound(_),
                Datum::Null | Datum::Bool(_) | Datum::Number(_) | Datum::Text(_) | Datum::Compound(_),
            ) => None,
        };
        match (self, ordering) {
            (Self::Equal, ordering) => Some(ordering == Some(Ordering::Equal)),
            (Self::NotEqual, ordering) => Some(ordering != Some(Ordering::Equal)),
            (_, None) => None,
            (Self::Less, Some(ordering)) => Some(ordering.is_lt()),
            (Self::LessOrEqual, Some(ordering)) => Some(ordering.is_le()),
            (Self::Greater, Some(ordering)) => Some(ordering.is_gt()),
            (Self::GreaterOrEqual, Some(ordering)) => Some(ordering.is_ge()),
        }
    }
}

impl Operator {
    fn of<'a>(self, left: Option<Datum<'a>>, right: Option<Datum<'a>>) -> Option<Datum<'a>> {
        if self == Self::Coalesce {
            return left.or(right);
        }
        match (left?, right?) {
            (Datum::Number(left), Datum::Number(right)) => {
                let number = match self {
                    Self::Add => left + right,
                    Self::Subtract => left - right,
                    Self::Multiply => left * right,
                    Self::Divide => left / right,
                    Self::Remainder => left % right,
                    Self::Concatenate | Self::Coalesce => return None,
                };
                Some(Datum::Number(number))
            }
            (Datum::Text(left), Datum::Text(right)) if self == Self::Concatenate => {
                Some(Datum::Text(Cow::Owned(format!("{left}{right}"))))
            }
            _ => None,
        }
    }
}

impl Expression {
    /// The value, or `None` when it is undefined.
    pub fn evaluate<'a>(&'a self, of: &'a dyn Attributes) -> Option<Datum<'a>> {
        match self {
            Self::Literal(literal) => literal.datum(),
            Self::Attribute(path) => of.value(path),
            Self::IsDefined(path) => Some(Datum::Bool(of.value(path).is_some())),
            Self::Not(inner) => inner.truth(of).map(|truth| Datum::Bool(!truth)),
            Self::Negate(inner) => match inner.evaluate(of)? {
                Datum::Number(number) => Some(Datum::Number(-number)),
                Datum::Null | Datum::Bool(_) | Datum::Text(_) | Datum::Compound(_) => None,
            },
            Self::All(parts) => join(parts, of, false).map(Datum::Bool),
            Self::Any(parts) => join(parts, of, true).map(Datum::Bool),
            Self::Compare(comparison, left, right) => {
                let (left, right) = (left.evaluate(of)?, right.evaluate(of)?);
                comparison.of(&left, &right).map(Datum::Bool)
            }
            Self::Operate(operator, left, right) => operator.of(left.evaluate(of), right.evaluate(of)),
            Self::In { value, list, negated } => {
                let value = value.evaluate(of)?;
                let is_in = list
                    .iter()
                    .filter_map(Literal::datum)
                    .any(|literal| Comparison::Equal.of(&value, &literal) == Some(true));
                Some(Datum::Bool(is_in != *negated))
            }
        }
    }

    /// As a condition: true, false, or neither.
    pub fn truth(&self, of: &dyn Attributes) -> Option<bool> {
        match self.evaluate(of)? {
            Datum::Bool(truth) => Some(truth),
            Datum::Null | Datum::Number(_) | Datum::Text(_) | Datum::Compound(_) => None,
        }
    }

    /// Calls `see` for this expression and all in it.
    pub fn walk(&self, see: &mut dyn FnMut(&Self)) {
        see(self);
        match self {
            Self::Literal(_) | Self::Attribute(_) | Self::IsDefined(_) => {}
            Self::Not(inner) | Self::Negate(inner) | Self::In { value: inner, .. } => inner.walk(see),
            Self::All(parts) | Self::Any(parts) => parts.iter().for_each(|part| part.walk(see)),
            Self::Compare(_, left, right) | Self::Operate(_, left, right) => {
                left.walk(see);
                right.walk(see);
            }
        }
    }
}

/// AND or OR in three-valued logic: one part that is `decisive` decides, an undefined one leaves it open.
fn join(parts: &[Expression], of: &dyn Attributes, decisive: bool) -> Option<bool> {
    let mut joined = Some(!decisive);
    for part in parts {
        match part.truth(of) {
            Some(truth) if truth == decisive => return Some(decisive),
            Some(_) => {}
            None => joined = None,
        }
    }
    joined
}

/// Reads tokens one after the other.
pub struct Parser {
    tokens: Vec<(Token, usize)>,
    next: usize,
}

/// How strongly an operator binds.
const COALESCE: u8 = 1;
const OR: u8 = 2;
const AND: u8 = 3;
const NOT: u8 = 4;
const EQUALITY: u8 = 5;
const RELATION: u8 = 6;
const SUM: u8 = 7;
const PRODUCT: u8 = 8;

#[derive(Clone, Copy)]
enum Infix {
    Operate(Operator),
    Compare(Comparison),
    And,
    Or,
    In { negated: bool },
}

impl Parser {
    /// # Errors
    /// As `tokens`.
    pub fn new(text: &str) -> Result<Self, ParseError> {
        Ok(Self {
            tokens: tokens(text)?,
            next: 0,
        })
    }

    pub fn at(&self) -> usize {
        self.tokens[self.next].1
    }

    pub fn peek(&self) -> &Token {
        &self.tokens[self.next].0
    }

    /// The next token; `End` again and again.
    pub fn take(&mut self) -> Token {
        let token = self.peek().clone();
        if token != Token::End {
            self.next += 1;
        }
        token
    }

    pub fn error(&self, reason: impl Into<String>) -> ParseError {
        ParseError::new(self.at(), reason)
    }

    pub fn is_symbol(&self, symbol: &str) -> bool {
        matches!(self.peek(), Token::Symbol(found) if *found == symbol)
    }

    pub fn is_keyword(&self, keyword: &str) -> bool {
        matches!(self.peek(), Token::Word(word) if word.eq_ignore_ascii_case(keyword))
    }

    /// Whether the word that comes next is called as a function.
    pub fn is_call(&self) -> bool {
        let then = self.tokens.get(self.next + 1);
        matches!(self.peek(), Token::Word(_)) && matches!(then, Some((Token::Symbol("("), _)))
    }

    pub fn skip_symbol(&mut self, symbol: &str) -> bool {
        let found = self.is_symbol(symbol);
        self.next += usize::from(found);
        found
    }

    pub fn skip_keyword(&mut self, keyword: &str) -> bool {
        let found = self.is_keyword(keyword);
        self.next += usize::from(found);
        found
    }

    /// # Errors
    /// When something else comes.
    pub fn expect_symbol(&mut self, symbol: &str) -> Result<(), ParseError> {
        if self.skip_symbol(symbol) {
            return Ok(());
        }
        Err(self.error(format!("{symbol} is expected")))
    }

    /// # Errors
    /// When something else comes.
    pub fn expect_keyword(&mut self, keyword: &str) -> Result<(), ParseError> {
        if self.skip_keyword(keyword) {
            return Ok(());
        }
        Err(self.error(format!("{keyword} is expected")))
    }

    /// # Errors
    /// When no attribute comes.
    pub fn path(&mut self) -> Result<Path, ParseError> {
        let mut path = Vec::new();
        loop {
            match self.peek() {
                Token::Word(word) if path.is_empty() && is_reserved(word) => {
                    return Err(self.error(format!("{word} cannot be an attribute; write [[{word}]]")));
                }
                Token::Word(name) | Token::Name(name) => path.push(name.clone()),
                Token::Text(_) | Token::Number(_) | Token::Symbol(_) | Token::End => {
                    return Err(self.error("the name of an attribute is expected"));
                }
            }
            self.next += 1;
            if !self.skip_symbol(".") {
                return Ok(Path(path));
            }
        }
    }

    /// # Errors
    /// What cannot be understood, or is nested too deeply.
    pub fn expression(&mut self) -> Result<Expression, ParseError> {
        Ok(self.infix(COALESCE, 0)?.0)
    }

    /// An expression of operators that bind at least so, with how deep it is; `above` is how many calls this one is in.
    fn infix(&mut self, strength_min: u8, above: u32) -> Result<(Expression, u32), ParseError> {
        if above > NESTING_MAX {
            return Err(self.error("parentheses are nested too deeply"));
        }
        let (mut left, mut depth) = self.prefix(strength_min, above)?;
        self.check_depth(depth)?;
        while let Some((infix, strength)) = self.peek_infix().filter(|(_, strength)| *strength >= strength_min) {
            self.next += 1;
            let (expression, right_depth) = match infix {
                Infix::In { negated } => {
                    let list = self.list()?;
                    let value = Box::new(left);
                    (Expression::In { value, list, negated }, 0)
                }
                Infix::And | Infix::Or => {
                    let mut parts = vec![left];
                    let mut depth = 0;
                    let keyword = if strength == AND { "AND" } else { "OR" };
                    loop {
                        let (part, part_depth) = self.infix(strength + 1, above + 1)?;
                        parts.push(part);
                        depth = depth.max(part_depth);
                        if !self.skip_keyword(keyword) {
                            break;
                        }
                    }
                    let joined = if strength == AND {
                        Expression::All
                    } else {
                        Expression::Any
                    };
                    (joined(parts), depth)
                }
                Infix::Compare(comparison) => {
                    let (right, depth) = self.infix(strength + 1, above + 1)?;
                    (Expression::Compare(comparison, Box::new(left), Box::new(right)), depth)
                }
                Infix::Operate(operator) => {
                    let (right, depth) = self.infix(strength + 1, above + 1)?;
                    (Expression::Operate(operator, Box::new(left), Box::new(right)), depth)
                }
            };
            depth = depth.max(right_depth) + 1;
            // Operators in a row nest to the left without a call for each.
            self.check_depth(depth)?;
            left = expression;
        }
        Ok((left, depth))
    }

    fn check_depth(&self, depth: u32) -> Result<(), ParseError> {
        if depth > DEPTH_MAX {
            return Err(self.error(format!("operators are nested more than {DEPTH_MAX} deep")));
        }
        Ok(())
    }

    fn peek_infix(&self) -> Option<(Infix, u8)> {
        Some(match self.peek() {
            Token::Symbol(symbol) => match *symbol {
                "??" => (Infix::Operate(Operator::Coalesce), COALESCE),
                "=" => (Infix::Compare(Comparison::Equal), EQUALITY),
                "!=" | "<>" => (Infix::Compare(Comparison::NotEqual), EQUALITY),
                "<" => (Infix::Compare(Comparison::Less), RELATION),
                "<=" => (Infix::Compare(Comparison::LessOrEqual), RELATION),
                ">" => (Infix::Compare(Comparison::Greater), RELATION),
                ">=" => (Infix::Compare(Comparison::GreaterOrEqual), RELATION),
                "+" => (Infix::Operate(Operator::Add), SUM),
                "-" => (Infix::Operate(Operator::Subtract), SUM),
                "||" => (Infix::Operate(Operator::Concatenate), SUM),
                "*" => (Infix::Operate(Operator::Multiply), PRODUCT),
                "/" => (Infix::Operate(Operator::Divide), PRODUCT),
                "%" => (Infix::Operate(Operator::Remainder), PRODUCT),
                _ => return None,
            },
            Token::Word(word) => match word.to_ascii_uppercase().as_str() {
                "OR" => (Infix::Or, OR),
                "AND" => (Infix::And, AND),
                "IN" => (Infix::In { negated: false }, RELATION),
                "NIN" => (Infix::In { negated: true }, RELATION),
                _ => return None,
            },
            Token::Name(_) | Token::Text(_) | Token::Number(_) | Token::End => return None,
        })
    }

    fn prefix(&mut self, strength_min: u8, above: u32) -> Result<(Expression, u32), ParseError> {
        if self.skip_keyword("NOT") {
            // The documents leave open whether NOT binds more strongly than comparisons. For booleans both ways come to
            // the same; for all else the stronger one is always undefined, and `NOT tags.floor = 1` would find nothing.
            let (inner, depth) = self.infix(strength_min.max(NOT + 1), above + 1)?;
            return Ok((Expression::Not(Box::new(inner)), depth + 1));
        }
        if self.skip_symbol("-") {
            if let Token::Number(number) = *self.peek() {
                self.next += 1;
                return Ok((Expression::Literal(Literal::Number(-number)), 0));
            }
            let (inner, depth) = self.infix(PRODUCT + 1, above + 1)?;
            return Ok((Expression::Negate(Box::new(inner)), depth + 1));
        }
        if self.skip_symbol("(") {
            let inner = self.infix(COALESCE, above + 1)?;
            self.expect_symbol(")")?;
            return Ok(inner);
        }
        if self.is_call() && !matches!(self.peek(), Token::Word(word) if is_reserved(word)) {
            if !self.skip_keyword("IS_DEFINED") {
                return Err(self.error("there is no such function"));
            }
            self.expect_symbol("(")?;
            let path = self.path()?;
            self.expect_symbol(")")?;
            return Ok((Expression::IsDefined(path), 0));
        }
        if let Some(literal) = self.literal() {
            return Ok((Expression::Literal(literal), 0));
        }
        Ok((Expression::Attribute(self.path()?), 0))
    }

    fn literal(&mut self) -> Option<Literal> {
        let literal = match self.peek() {
            Token::Text(text) => Literal::Text(text.clone()),
            Token::Number(number) => Literal::Number(*number),
            Token::Word(word) => match word.to_ascii_uppercase().as_str() {
                "TRUE" => Literal::Bool(true),
                "FALSE" => Literal::Bool(false),
                "NULL" => Literal::Null,
                "UNDEFINED" => Literal::Undefined,
                _ => return None,
            },
            Token::Name(_) | Token::Symbol(_) | Token::End => return None,
        };
        self.next += 1;
        Some(literal)
    }

    fn list(&mut self) -> Result<Vec<Literal>, ParseError> {
        self.expect_symbol("[")?;
        let mut list = Vec::new();
        if self.skip_symbol("]") {
            return Ok(list);
        }
        loop {
            let is_negative = self.skip_symbol("-");
            list.push(match (is_negative, self.literal()) {
                (true, Some(Literal::Number(number))) => Literal::Number(-number),
                (false, Some(literal)) => literal,
                (true, Some(_)) | (_, None) => return Err(self.error("a list holds texts, numbers, true, false, null")),
            });
            if !self.skip_symbol(",") {
                self.expect_symbol("]")?;
                return Ok(list);
            }
        }
    }
}

fn is_reserved(word: &str) -> bool {
    RESERVED.iter().any(|reserved| reserved.eq_ignore_ascii_case(word)) || word.eq_ignore_ascii_case("UNDEFINED")
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(".")?;
            }
            write_name(f, name, index == 0)?;
        }
        Ok(())
    }
}

pub(super) fn write_name(f: &mut fmt::Formatter<'_>, name: &str, is_first: bool) -> fmt::Result {
    if is_word(name) && !(is_first && is_reserved(name)) {
        f.write_str(name)
    } else {
        write!(f, "[[{name}]]")
    }
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undefined => f.write_str("undefined"),
            Self::Null => f.write_str("null"),
            Self::Bool(value) => value.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => {
                f.write_str("'")?;
                for c in text.chars() {
                    if matches!(c, '\'' | '\\') {
                        f.write_str("\\")?;
                    }
                    write!(f, "{c}")?;
                }
                f.write_str("'")
            }
        }
    }
}

impl fmt::Display for Expression {
    /// With all parentheses, so that it reads back as the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(literal) => literal.fmt(f),
            Self::Attribute(path) => path.fmt(f),
            Self::IsDefined(path) => write!(f, "IS_DEFINED({path})"),
            Self::Not(inner) => write!(f, "(NOT {inner})"),
            Self::Negate(inner) => write!(f, "(- {inner})"),
            Self::All(parts) => write_joined(f, parts, " AND "),
            Self::Any(parts) => write_joined(f, parts, " OR "),
            Self::Compare(comparison, left, right) => write!(f, "({left} {} {right})", comparison.symbol()),
            Self::Operate(operator, left, right) => write!(f, "({left} {} {right})", operator.symbol()),
            Self::In { value, list, negated } => {
                write!(f, "({value} {} [", if *negated { "NIN" } else { "IN" })?;
                for (index, literal) in list.iter().enumerate() {
                    write!(f, "{}{literal}", if index > 0 { ", " } else { "" })?;
                }
                f.write_str("])")
            }
        }
    }
}

fn write_joined(f: &mut fmt::Formatter<'_>, parts: &[Expression], separator: &str) -> fmt::Result {
    f.write_str("(")?;
    for (index, part) in parts.iter().enumerate() {
        write!(f, "{}{part}", if index > 0 { separator } else { "" })?;
    }
    f.write_str(")")
}

impl Comparison {
    fn symbol(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        }
    }
}

impl Operator {
    fn symbol(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Multiply => "*",
            Self::Divide => "/",
            Self::Remainder => "%",
            Self::Concatenate => "||",
            Self::Coalesce => "??",
        }
    }
}
