//! `SELECT <list> FROM <source> [WHERE <condition>] [GROUP BY <attributes>]`.

use std::collections::BTreeSet;
use std::fmt;

use super::expression::{Comparison, Expression, Literal, Parser, Path, write_name};
use super::lexer::Token;
use super::{ParseError, QUERY_BYTES_MAX};

/// A query, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    pub select: Select,
    /// At most so many results altogether.
    pub top: Option<u32>,
    pub source: Source,
    pub condition: Option<Expression>,
    pub group_by: Vec<Path>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Select {
    /// `*`: whole twins.
    All,
    Some(Vec<Selected>),
}

/// One result with its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Selected {
    pub output: Output,
    pub alias: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    Attribute(Path),
    Count,
    Aggregate(Aggregate, Path),
}

/// Of numbers; whatever else an attribute is does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregate {
    Average,
    Sum,
    Minimum,
    Maximum,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Devices,
    Modules,
    Jobs,
}

impl Query {
    /// # Errors
    /// What cannot be understood, and where.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        if text.len() > QUERY_BYTES_MAX {
            let reason = format!("the query is longer than {QUERY_BYTES_MAX} bytes");
            return Err(ParseError::new(QUERY_BYTES_MAX, reason));
        }
        let mut parser = Parser::new(text)?;
        parser.expect_keyword("SELECT")?;
        let top = parser.skip_keyword("TOP").then(|| top(&mut parser)).transpose()?;
        let select_at = parser.at();
        let select = select(&mut parser)?;
        parser.expect_keyword("FROM")?;
        let source = source(&mut parser)?;
        let condition_at = parser.at();
        let condition = parser.skip_keyword("WHERE").then(|| parser.expression()).transpose()?;
        let mut group_by = Vec::new();
        if parser.skip_keyword("GROUP") {
            parser.expect_keyword("BY")?;
            group_by.push(parser.path()?);
            while parser.skip_symbol(",") {
                group_by.push(parser.path()?);
            }
        }
        if *parser.peek() != Token::End {
            return Err(parser.error("the query should end here"));
        }
        let query = Self {
            select,
            top,
            source,
            condition,
            group_by,
        };
        query.check(select_at, condition_at)?;
        Ok(query)
    }

    fn check(&self, select_at: usize, condition_at: usize) -> Result<(), ParseError> {
        let mut compares_attributes = false;
        if let Some(condition) = &self.condition {
            condition.walk(&mut |expression| {
                if let Expression::Compare(_, left, right) = expression {
                    let both = (&**left, &**right);
                    compares_attributes |= matches!(both, (Expression::Attribute(_), Expression::Attribute(_)));
                }
            });
        }
        if compares_attributes {
            // IoT Hub, query section 9, limits.
            let reason = "attributes are compared with values, not with each other";
            return Err(ParseError::new(condition_at, reason));
        }
        let fault = match &self.select {
            Select::All if !self.group_by.is_empty() => {
                Some("GROUP BY needs aggregates and its attributes, not *".into())
            }
            Select::All => None,
            Select::Some(selected) => self.fault_of(selected),
        };
        fault.map_or(Ok(()), |reason| Err(ParseError::new(select_at, reason)))
    }

    fn fault_of(&self, selected: &[Selected]) -> Option<String> {
        let mut names = BTreeSet::new();
        for (index, one) in selected.iter().enumerate() {
            let name = one.name(index);
            if !names.insert(name.clone()) {
                return Some(format!("two results have the name {name}; give one another with AS"));
            }
            if let Output::Attribute(path) = &one.output
                && self.is_aggregated()
                && !self.group_by.contains(path)
            {
                return Some(format!(
                    "{path} is selected beside aggregates, so GROUP BY must name it"
                ));
            }
        }
        None
    }

    /// Whether results are made of groups rather than of one identity each.
    pub fn is_aggregated(&self) -> bool {
        let is_aggregate = |one: &Selected| !matches!(one.output, Output::Attribute(_));
        !self.group_by.is_empty() || matches!(&self.select, Select::Some(selected) if selected.iter().any(is_aggregate))
    }

    /// The only ids that can be found, if the condition says so.
    pub(super) fn device_ids(&self) -> Option<BTreeSet<String>> {
        device_ids(self.condition.as_ref()?)
    }
}

/// The only device ids for which the condition can be true; `None` if that cannot be told.
fn device_ids(condition: &Expression) -> Option<BTreeSet<String>> {
    let is_id = |expression: &Expression| matches!(expression, Expression::Attribute(path) if path.0 == ["deviceId"]);
    let text = |literal: &Literal| match literal {
        Literal::Text(text) => Some(text.clone()),
        Literal::Undefined | Literal::Null | Literal::Bool(_) | Literal::Number(_) => None,
    };
    match condition {
        Expression::Compare(Comparison::Equal, left, right) => match (&**left, &**right) {
            (id, Expression::Literal(literal)) | (Expression::Literal(literal), id) if is_id(id) => {
                Some(text(literal).into_iter().collect())
            }
            _ => None,
        },
        Expression::In {
            value,
            list,
            negated: false,
        } if is_id(value) => Some(list.iter().filter_map(text).collect()),
        Expression::All(parts) => parts
            .iter()
            .filter_map(device_ids)
            .reduce(|left, right| left.intersection(&right).cloned().collect()),
        Expression::Any(parts) => parts.iter().map(device_ids).try_fold(BTreeSet::new(), |mut all, ids| {
            all.extend(ids?);
            Some(all)
        }),
        Expression::Literal(_)
        | Expression::Attribute(_)
        | Expression::IsDefined(_)
        | Expression::Not(_)
        | Expression::Negate(_)
        | Expression::Compare(..)
        | Expression::Operate(..)
        | Expression::In { .. } => None,
    }
}

impl Selected {
    /// The member of a result: the alias, the last part of the attribute, or for an aggregate its place.
    pub fn name(&self, index: usize) -> String {
        match (&self.alias, &self.output) {
            (Some(alias), _) => alias.clone(),
            (None, Output::Attribute(path)) => path.0.last().cloned().unwrap_or_default(),
            (None, Output::Count | Output::Aggregate(..)) => format!("${}", index + 1),
        }
    }
}

impl Source {
    fn words(self) -> &'static str {
        match self {
            Self::Devices => "devices",
            Self::Modules => "devices.modules",
            Self::Jobs => "devices.jobs",
        }
    }
}

impl Aggregate {
    const ALL: [Self; 4] = [Self::Average, Self::Sum, Self::Minimum, Self::Maximum];

    fn word(self) -> &'static str {
        match self {
            Self::Average => "AVG",
            Self::Sum => "SUM",
            Self::Minimum => "MIN",
            Self::Maximum => "MAX",
        }
    }
}

fn top(parser: &mut Parser) -> Result<u32, ParseError> {
    let error = parser.error("TOP needs a whole number from 1");
    match parser.take() {
        Token::Number(number) if number >= 1.0 && number <= f64::from(u32::MAX) && number.fract() == 0.0 => {
            Ok(number as u32)
        }
        _ => Err(error),
    }
}

fn select(parser: &mut Parser) -> Result<Select, ParseError> {
    if parser.skip_symbol("*") {
        return Ok(Select::All);
    }
    let mut selected = Vec::new();
    loop {
        let output = output(parser)?;
        let alias = parser.skip_keyword("AS").then(|| alias(parser)).transpose()?;
        selected.push(Selected { output, alias });
        if !parser.skip_symbol(",") {
            return Ok(Select::Some(selected));
        }
    }
}

fn output(parser: &mut Parser) -> Result<Output, ParseError> {
    if !parser.is_call() {
        return Ok(Output::Attribute(parser.path()?));
    }
    if parser.skip_keyword("COUNT") {
        parser.expect_symbol("(")?;
        parser.expect_symbol(")")?;
        return Ok(Output::Count);
    }
    let Some(aggregate) = Aggregate::ALL.into_iter().find(|one| parser.skip_keyword(one.word())) else {
        return Err(parser.error("there is no such aggregate; there are COUNT, AVG, SUM, MIN, MAX"));
    };
    parser.expect_symbol("(")?;
    let path = parser.path()?;
    parser.expect_symbol(")")?;
    Ok(Output::Aggregate(aggregate, path))
}

fn alias(parser: &mut Parser) -> Result<String, ParseError> {
    let at = parser.at();
    let path = parser.path()?;
    match <[String; 1]>::try_from(path.0) {
        Ok([name]) => Ok(name),
        Err(_) => Err(ParseError::new(at, "an alias has one part")),
    }
}

fn source(parser: &mut Parser) -> Result<Source, ParseError> {
    let at = parser.at();
    let path = parser.path()?;
    let words = path.0.join(".");
    [Source::Devices, Source::Modules, Source::Jobs]
        .into_iter()
        .find(|source| source.words().eq_ignore_ascii_case(&words))
        .ok_or_else(|| ParseError::new(at, "the source is none of devices, devices.modules, devices.jobs"))
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SELECT ")?;
        if let Some(top) = self.top {
            write!(f, "TOP {top} ")?;
        }
        match &self.select {
            Select::All => f.write_str("*")?,
            Select::Some(selected) => {
                for (index, one) in selected.iter().enumerate() {
                    write!(f, "{}{one}", if index > 0 { ", " } else { "" })?;
                }
            }
        }
        write!(f, " FROM {}", self.source.words())?;
        if let Some(condition) = &self.condition {
            write!(f, " WHERE {condition}")?;
        }
        for (index, path) in self.group_by.iter().enumerate() {
            write!(f, "{}{path}", if index > 0 { ", " } else { " GROUP BY " })?;
        }
        Ok(())
    }
}

impl fmt::Display for Selected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.output {
            Output::Attribute(path) => path.fmt(f)?,
            Output::Count => f.write_str("COUNT()")?,
            Output::Aggregate(aggregate, path) => write!(f, "{}({path})", aggregate.word())?,
        }
        if let Some(alias) = &self.alias {
            f.write_str(" AS ")?;
            write_name(f, alias, true)?;
        }
        Ok(())
    }
}
