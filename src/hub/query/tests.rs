//! The language by the contract's examples, against a plain model, and searches over a store.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::hub::entropy::testing::Counting;
use crate::hub::identity::{DeviceIdentity, ModuleIdentity, Status};
use crate::hub::{IdentityName, IfMatch, Registry, TwinUpdate, Twins};
use crate::model::{DeviceId, ModuleId, UtcMillis};
use crate::state::MemoryState;

const NOW: UtcMillis = UtcMillis(1_700_000_000_123);

struct Hub {
    registry: Registry,
    twins: Twins,
}

impl Hub {
    fn new() -> Self {
        let state = MemoryState::new();
        let registry = Registry::open(state.clone(), Arc::new(Counting::default()), 4).unwrap();
        let twins = Twins::new(state, registry.clone());
        Self { registry, twins }
    }

    /// A device with a twin; `{"tags", "properties": {"desired"}}`.
    fn device(&self, id: &str, twin: &Value) {
        let mut wanted = DeviceIdentity::new(DeviceId::new(id).unwrap());
        if id.ends_with('-') {
            wanted.status = Status::Disabled;
        }
        self.registry.create_device_blocking(wanted, NOW).unwrap();
        self.change(IdentityName::device(DeviceId::new(id).unwrap()), twin);
    }

    fn module(&self, id: &str, module: &str, twin: &Value) {
        let (device, module) = (DeviceId::new(id).unwrap(), ModuleId::new(module).unwrap());
        let wanted = ModuleIdentity::new(device.clone(), module.clone());
        self.registry.create_module_blocking(wanted, NOW).unwrap();
        self.change(IdentityName::module(device, module), twin);
    }

    fn change(&self, name: IdentityName, twin: &Value) {
        let update = TwinUpdate::from_json(twin.to_string().as_bytes()).unwrap();
        self.twins.patch_blocking(name, update, IfMatch::Any, NOW).unwrap();
    }

    fn page(&self, text: &str, items_max: usize, token: Option<&str>) -> Result<(Page, usize), SearchError> {
        let query = Query::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let mut search = Search::new(self.registry.clone(), text, query, items_max, token)?;
        let mut slices = 1;
        loop {
            // Slices of three, so that pages end within slices and slices within pages.
            match search.advance(3)? {
                Progress::More => slices += 1,
                Progress::Page(page) => return Ok((page, slices)),
            }
        }
    }

    /// All pages, one after the other.
    fn ask(&self, text: &str, items_max: usize) -> Vec<Value> {
        let (mut items, mut token) = (Vec::new(), None);
        loop {
            let (page, _) = self.page(text, items_max, token.as_deref()).unwrap();
            assert!(page.items.len() <= items_max);
            items.extend(page.items);
            token = page.continuation;
            if token.is_none() {
                return items;
            }
        }
    }

    fn ids(&self, condition: &str) -> Vec<String> {
        let items = self.ask(&format!("SELECT deviceId FROM devices WHERE {condition}"), 2);
        let mut ids: Vec<_> = items
            .iter()
            .map(|item| item["deviceId"].as_str().unwrap().to_owned())
            .collect();
        ids.sort();
        ids
    }
}

fn plant() -> Hub {
    let hub = Hub::new();
    hub.device(
        "a",
        &json!({ "tags": { "floor": 1, "kind": "pump", "hot": true, "room+no": "7" } }),
    );
    hub.device(
        "b",
        &json!({ "tags": { "floor": 2, "kind": "Pump" }, "properties": { "desired": { "n": 2.5 } } }),
    );
    hub.device(
        "c",
        &json!({ "tags": { "floor": "2", "list": [1, 2], "deep": { "er": { "x": 1 } } } }),
    );
    hub.device(
        "d-",
        &json!({ "properties": { "desired": { "n": -1, "o": { "p": "q" } } } }),
    );
    hub
}

#[test]
fn conditions_find_what_the_contract_says() {
    let hub = plant();
    let check = |condition: &str, expected: &[&str]| assert_eq!(hub.ids(condition), expected, "{condition}");
    // IoT Hub, query section 8.5, comparison details.
    check("tags.floor = 2", &["b"]);
    check("tags.floor = '2'", &["c"]);
    check("tags.floor != 2", &["a", "c"]);
    check("tags.floor <> '2'", &["a", "b"]);
    check("tags.floor < 2", &["a"]);
    check("tags.floor >= '2'", &["c"]);
    check("tags.kind = 'pump'", &["a"]);
    check("tags.kind < 'pump'", &["b"]);
    check("tags.hot", &["a"]);
    check("tags.hot > false", &["a"]);
    check("tags.nothing = 1", &[]);
    check("tags.nothing != 1", &[]);
    check("tags.list != 1", &["c"]);
    check("statusReason = null", &["a", "b", "c", "d-"]);
    check("null <= null AND null >= null", &["a", "b", "c", "d-"]);
    check("null <> null OR null < null", &[]);
    // Three-valued logic.
    check("tags.nothing = 1 OR tags.floor = 1", &["a"]);
    check("tags.nothing = 1 AND tags.floor = 1", &[]);
    check("NOT (tags.nothing = 1)", &[]);
    check("NOT (tags.nothing = 1 AND tags.floor = 1)", &["b", "c"]);
    check("NOT tags.floor = 1", &["b", "c"]);
    check("NOT tags.floor", &[]);
    check("NOT IS_DEFINED(tags.floor)", &["d-"]);
    check("is_defined(properties.desired.o.p)", &["d-"]);
    check("IS_DEFINED(statusReason)", &["a", "b", "c", "d-"]);
    check("tags.kind IN ['pump', 'valve', 1]", &["a"]);
    check("tags.kind NIN ['pump', 'valve']", &["b"]);
    check("tags.floor IN []", &[]);
    check("tags.floor IN [1, '2'] AND NOT tags.kind IN ['pump']", &[]);
    // Precedence, arithmetic, texts.
    check("tags.floor = 1 OR tags.floor = 2 AND tags.kind = 'x'", &["a"]);
    check("(tags.floor = 1 OR tags.floor = 2) AND tags.kind = 'x'", &[]);
    check("tags.floor + 1 * 2 = 4", &["b"]);
    check("(tags.floor + 1) * 2 = 4", &["a"]);
    check("properties.desired.n < 0 - .5", &["d-"]);
    check("-properties.desired.n = 1e0", &["d-"]);
    check("properties.desired.n % 2 = 0.5", &["b"]);
    check("tags.kind || '!' = 'pump!'", &["a"]);
    check("tags.nothing ?? tags.floor = 0x2", &["b"]);
    check("tags.[[room+no]] = \"7\"", &["a"]);
    check("tags.kind = '\\u0070ump' /* escaped */", &["a"]);
    check("tags.deep.er.x = 1 and status = 'enabled'", &["c"]);
    check("STATUS = 'enabled'", &[]);
    check("status = 'disabled'", &["d-"]);
    check("properties.desired.$version = 2", &["b", "d-"]);
    check("properties.desired.$metadata.n.$lastUpdated > '2023'", &["b", "d-"]);
    check("capabilities.iotEdge = false AND deviceId != 'a'", &["b", "c", "d-"]);
    check("connectionState = 'Disconnected' AND deviceId = 'a'", &["a"]);
    check("true", &["a", "b", "c", "d-"]);
    check("1", &[]);
}

#[test]
fn errors_say_where_and_what() {
    let check = |text: &str, at: usize, reason: &str| {
        let error = Query::parse(text).unwrap_err();
        assert!(error.at == at && error.reason.contains(reason), "{text}: {error}");
    };
    check("", 0, "SELECT");
    check("SELECT FROM devices", 7, "FROM cannot be an attribute");
    check("SELECT * FROM device", 14, "source");
    check("SELECT * FROM devices WHERE", 27, "attribute");
    check("SELECT * FROM devices WHERE a = 'x", 32, "text without end");
    check("SELECT * FROM devices WHERE a = 'x' b", 36, "end here");
    check("SELECT * FROM devices WHERE (a = 1", 34, ")");
    check("SELECT * FROM devices WHERE a = #", 32, "'#'");
    check("SELECT * FROM devices WHERE a = 1x", 32, "letters");
    check("SELECT * FROM devices WHERE a = 1e999", 32, "too large");
    check("SELECT * FROM devices WHERE lower(a) = 'x'", 28, "function");
    check("SELECT * FROM devices WHERE a IN 'x'", 33, "[");
    check("SELECT * FROM devices WHERE a IN [b]", 34, "list");
    check("SELECT * FROM devices WHERE tags.a = tags.b", 22, "each other");
    check("SELECT TOP 0 * FROM devices", 11, "TOP");
    check("SELECT * FROM devices GROUP BY a", 7, "GROUP BY");
    check("SELECT a, COUNT() FROM devices", 7, "GROUP BY must name it");
    check("SELECT tags.a, properties.desired.a FROM devices", 7, "AS");
    check("SELECT MEDIAN(a) FROM devices", 7, "aggregate");
    check("SELECT a AS b.c FROM devices", 12, "one part");
    check(
        &format!("SELECT * FROM devices WHERE {}1=1", "(".repeat(5000)),
        157,
        "nested",
    );
    check(
        &format!("SELECT * FROM devices WHERE 1{}", "+1".repeat(100)),
        95,
        "32 deep",
    );
    check(&"x".repeat(QUERY_BYTES_MAX + 1), QUERY_BYTES_MAX, "longer");
    let long_or = format!("SELECT * FROM devices WHERE {}a = 1", "a = 1 OR ".repeat(1000));
    assert!(Query::parse(&long_or).is_ok(), "a long row of OR is not deep");
}

#[test]
fn lists_aggregates_and_groups_have_names_and_whole_numbers() {
    let hub = plant();
    hub.module("a", "m", &json!({ "tags": { "x": 1 } }));
    hub.module("a", "n", &json!({ "tags": { "x": 2 } }));
    hub.module("b", "m", &json!({ "tags": { "x": 3 } }));
    let check = |text: &str, expected: Value| {
        let mut items = hub.ask(text, 2);
        items.sort_by_key(Value::to_string);
        assert_eq!(Value::Array(items), expected, "{text}");
    };
    check("SELECT COUNT() AS n FROM devices", json!([{ "n": 4 }]));
    check("SELECT COUNT() FROM devices WHERE false", json!([{ "$1": 0 }]));
    check("SELECT COUNT() AS n FROM devices.jobs", json!([{ "n": 0 }]));
    check("SELECT * FROM devices.jobs WHERE jobType = 'x'", json!([]));
    check("SELECT SUM(tags.none) FROM devices", json!([{}]));
    check(
        "SELECT SUM(tags.floor) AS s, AVG(tags.floor) AS a, MIN(properties.desired.n) AS i, MAX(tags.floor) AS x FROM devices",
        json!([{ "s": 3, "a": 1.5, "i": -1, "x": 2 }]),
    );
    check(
        "SELECT status, COUNT() AS n FROM devices GROUP BY status",
        json!([{ "n": 1, "status": "disabled" }, { "n": 3, "status": "enabled" }]),
    );
    check(
        "SELECT tags.floor AS f, COUNT() AS n FROM devices GROUP BY tags.floor",
        json!([{ "f": "2", "n": 1 }, { "f": 1, "n": 1 }, { "f": 2, "n": 1 }, { "n": 1 }]),
    );
    check(
        "SELECT tags.x, moduleId FROM devices.modules WHERE deviceId = 'a'",
        json!([{ "moduleId": "m", "x": 1 }, { "moduleId": "n", "x": 2 }]),
    );
    check(
        "SELECT COUNT() AS n FROM devices.modules WHERE tags.x >= 2",
        json!([{ "n": 2 }]),
    );
    assert_eq!(hub.ask("SELECT TOP 3 * FROM devices", 2).len(), 3, "over two pages");
    let (page, _) = hub.page("SELECT * FROM devices WHERE deviceId = 'b'", 5, None).unwrap();
    assert_eq!((page.item_type, page.items.len()), ("twin", 1));
    assert_eq!(page.items[0]["properties"]["desired"]["n"], 2.5);
    assert_eq!(page.items[0]["properties"]["desired"]["$version"], 2);
}

#[test]
fn devices_that_are_named_are_the_only_ones_read() {
    let hub = Hub::new();
    for n in 0..50 {
        hub.device(&format!("d{n}"), &json!({ "tags": { "n": n } }));
    }
    let check = |condition: &str, found: usize, slices_max: usize| {
        let text = format!("SELECT * FROM devices WHERE {condition}");
        let (page, slices) = hub.page(&text, 100, None).unwrap();
        assert_eq!(page.items.len(), found, "{condition}");
        assert!(slices <= slices_max, "{condition}: {slices} slices of three");
    };
    check("deviceId = 'd7'", 1, 1);
    check("'d7' = deviceId AND tags.n = 8", 0, 1);
    check("deviceId IN ['d1', 'd2', 'no', 'bad id']", 2, 2);
    check("deviceId IN ['d1', 'd2'] AND deviceId IN ['d2', 'd3']", 1, 1);
    check("deviceId = 'd1' OR deviceId = 'd2'", 2, 1);
    check("deviceId = 5", 0, 1);
    // These do not say which devices.
    check("deviceId = 'd1' OR tags.n = 3", 2, 18);
    check("deviceId NIN ['d1']", 49, 18);
    check("NOT deviceId = 'd1'", 49, 18);
}

#[test]
fn a_page_goes_on_where_the_last_one_ended_whatever_happened_between() {
    let hub = Hub::new();
    for n in 0..20 {
        hub.device(&format!("d{n}"), &json!({ "tags": { "n": n } }));
    }
    let text = "SELECT deviceId FROM devices";
    let (first, _) = hub.page(text, 7, None).unwrap();
    let token = first.continuation.unwrap();
    for item in &first.items {
        let device = DeviceId::new(item["deviceId"].as_str().unwrap()).unwrap();
        hub.registry.delete_device_blocking(&device, IfMatch::Any).unwrap();
    }
    let (second, _) = hub.page(text, 100, Some(&token)).unwrap();
    assert_eq!(second.items.len(), 13, "none twice, none left out");
    assert_eq!(second.continuation, None);

    let refused = |text: &str, token: &str| matches!(hub.page(text, 7, Some(token)), Err(SearchError::Continuation));
    assert!(
        refused("SELECT deviceId FROM devices WHERE true", &token),
        "of another query"
    );
    for at in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let damaged = String::from_utf8(bytes).unwrap();
        // The last character may carry bits that stand for nothing, which the decoder refuses by itself.
        assert!(refused(text, &damaged), "{damaged}");
    }
    for token in ["", "x", "****", &token[1..]] {
        assert!(refused(text, token), "{token:?}");
    }
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z$_][a-zA-Z0-9_]{0,4}(-[a-z0-9]{1,3})?",
        "[a-z .'#-]{1,6}",
        Just("select".to_owned()),
        Just("5".to_owned()),
    ]
}

fn path() -> impl Strategy<Value = Path> {
    prop::collection::vec(name(), 1..4).prop_map(Path)
}

fn literal() -> impl Strategy<Value = Literal> {
    prop_oneof![
        Just(Literal::Null),
        Just(Literal::Undefined),
        any::<bool>().prop_map(Literal::Bool),
        any::<f64>()
            .prop_filter("finite", |number| number.is_finite())
            .prop_map(Literal::Number),
        (-3i8..3).prop_map(|number| Literal::Number(number.into())),
        "[a-c'\"\\\\é\u{1F600}]{0,4}".prop_map(Literal::Text),
    ]
}

fn comparison() -> impl Strategy<Value = Comparison> {
    prop::sample::select(vec![
        Comparison::Equal,
        Comparison::NotEqual,
        Comparison::Less,
        Comparison::LessOrEqual,
        Comparison::Greater,
        Comparison::GreaterOrEqual,
    ])
}

fn operator() -> impl Strategy<Value = Operator> {
    prop::sample::select(vec![
        Operator::Add,
        Operator::Subtract,
        Operator::Multiply,
        Operator::Divide,
        Operator::Remainder,
        Operator::Concatenate,
        Operator::Coalesce,
    ])
}

fn expression(path: BoxedStrategy<Path>) -> impl Strategy<Value = Expression> {
    let leaf = prop_oneof![
        literal().prop_map(Expression::Literal),
        path.clone().prop_map(Expression::Attribute),
        path.prop_map(Expression::IsDefined),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        let boxed = inner.clone().prop_map(Box::new);
        // A minus before a number is part of the number.
        let negatable = inner
            .clone()
            .prop_filter("no number", |e| !matches!(e, Expression::Literal(Literal::Number(_))));
        prop_oneof![
            boxed.clone().prop_map(Expression::Not),
            negatable.prop_map(|inner| Expression::Negate(Box::new(inner))),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Expression::All),
            prop::collection::vec(inner, 2..4).prop_map(Expression::Any),
            (comparison(), boxed.clone(), boxed.clone()).prop_map(|(c, l, r)| Expression::Compare(c, l, r)),
            (operator(), boxed.clone(), boxed.clone()).prop_map(|(o, l, r)| Expression::Operate(o, l, r)),
            (boxed, prop::collection::vec(literal(), 0..3), any::<bool>())
                .prop_map(|(value, list, negated)| { Expression::In { value, list, negated } }),
        ]
    })
}

/// A second evaluator, by the tables of the contract, over plain JSON: `None` is undefined.
fn model(expression: &Expression, document: &Value) -> Option<Value> {
    let get = |path: &Path| path.0.iter().try_fold(document, |value, name| value.get(name)).cloned();
    let of_literal = |literal: &Literal| match literal {
        Literal::Undefined => None,
        Literal::Null => Some(Value::Null),
        Literal::Bool(value) => Some(json!(value)),
        Literal::Number(value) => Some(json!(value)),
        Literal::Text(text) => Some(json!(text)),
    };
    let equal = |left: &Value, right: &Value| match (left.as_f64(), right.as_f64()) {
        (Some(left), Some(right)) => left == right,
        _ => left == right,
    };
    let truth = |expression: &Expression| model(expression, document).and_then(|value| value.as_bool());
    match expression {
        Expression::Literal(literal) => of_literal(literal),
        Expression::Attribute(path) => get(path),
        Expression::IsDefined(path) => Some(json!(get(path).is_some())),
        Expression::Not(inner) => truth(inner).map(|truth| json!(!truth)),
        Expression::Negate(inner) => Some(json!(-model(inner, document)?.as_f64()?)),
        Expression::All(parts) => {
            let truths: Vec<_> = parts.iter().map(truth).collect();
            match (truths.contains(&Some(false)), truths.contains(&None)) {
                (true, _) => Some(json!(false)),
                (false, true) => None,
                (false, false) => Some(json!(true)),
            }
        }
        Expression::Any(parts) => {
            let truths: Vec<_> = parts.iter().map(truth).collect();
            match (truths.contains(&Some(true)), truths.contains(&None)) {
                (true, _) => Some(json!(true)),
                (false, true) => None,
                (false, false) => Some(json!(false)),
            }
        }
        Expression::Compare(comparison, left, right) => {
            let (left, right) = (model(left, document)?, model(right, document)?);
            let order = match (&left, &right) {
                (Value::Number(_), Value::Number(_)) => left.as_f64().partial_cmp(&right.as_f64()),
                (Value::String(l), Value::String(r)) => {
                    Some(l.encode_utf16().collect::<Vec<_>>().cmp(&r.encode_utf16().collect()))
                }
                (Value::Bool(l), Value::Bool(r)) => Some(l.cmp(r)),
                (Value::Null, Value::Null) => Some(std::cmp::Ordering::Equal),
                _ => None,
            };
            let ordered = |wanted: fn(std::cmp::Ordering) -> bool| order.map(|order| json!(wanted(order)));
            match comparison {
                Comparison::Equal => Some(json!(equal(&left, &right))),
                Comparison::NotEqual => Some(json!(!equal(&left, &right))),
                Comparison::Less => ordered(std::cmp::Ordering::is_lt),
                Comparison::LessOrEqual => ordered(std::cmp::Ordering::is_le),
                Comparison::Greater => ordered(std::cmp::Ordering::is_gt),
                Comparison::GreaterOrEqual => ordered(std::cmp::Ordering::is_ge),
            }
        }
        Expression::Operate(Operator::Coalesce, left, right) => {
            model(left, document).or_else(|| model(right, document))
        }
        Expression::Operate(Operator::Concatenate, left, right) => {
            let (left, right) = (model(left, document)?, model(right, document)?);
            Some(json!([left.as_str()?, right.as_str()?].concat()))
        }
        Expression::Operate(operator, left, right) => {
            let (left, right) = (model(left, document)?.as_f64()?, model(right, document)?.as_f64()?);
            Some(json!(match operator {
                Operator::Add => left + right,
                Operator::Subtract => left - right,
                Operator::Multiply => left * right,
                Operator::Divide => left / right,
                Operator::Remainder | Operator::Concatenate | Operator::Coalesce => left % right,
            }))
        }
        Expression::In { value, list, negated } => {
            let value = model(value, document)?;
            let is_in = list
                .iter()
                .filter_map(of_literal)
                .any(|literal| equal(&value, &literal));
            Some(json!(is_in != *negated))
        }
    }
}

/// Values that stay what they are in JSON: sums do not leave the numbers it has.
fn small_expression() -> impl Strategy<Value = Expression> {
    let paths = [
        "tags.a",
        "tags.b",
        "tags.c.d",
        "properties.desired.a",
        "deviceId",
        "none.x",
    ];
    let path = prop::sample::select(paths.to_vec());
    let path = path.prop_map(|text| Path(text.split('.').map(str::to_owned).collect()));
    expression(path.boxed()).prop_filter("finite sums", |expression| {
        let mut is_plain = true;
        expression.walk(&mut |part| {
            is_plain &= !matches!(part, Expression::Operate(Operator::Divide | Operator::Remainder, ..));
            is_plain &= !matches!(part, Expression::Literal(Literal::Number(number)) if number.abs() > 1e9);
        });
        is_plain
    })
}

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        (-3i64..3).prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        "[a-c]{0,2}".prop_map(Value::from),
        Just(json!([1])),
        Just(json!({ "d": 1 })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_is_written_reads_back_as_the_same(
        condition in prop::option::of(expression(path().boxed())),
        selected in prop::collection::vec((path(), name()), 1..4),
        top in prop::option::of(1u32..),
        group in any::<bool>(),
    ) {
        let group_by = if group { selected.iter().map(|(path, _)| path.clone()).collect() } else { Vec::new() };
        let selected = selected.into_iter().enumerate().map(|(index, (path, alias))| Selected {
            output: Output::Attribute(path),
            alias: Some(format!("{alias}{index}")),
        });
        let query = Query {
            select: Select::Some(selected.collect()),
            top,
            source: Source::Devices,
            condition,
            group_by,
        };
        let mut compares_attributes = false;
        if let Some(condition) = &query.condition {
            condition.walk(&mut |part| {
                compares_attributes |= matches!(part, Expression::Compare(_, left, right)
                    if matches!((&**left, &**right), (Expression::Attribute(_), Expression::Attribute(_))));
            });
        }
        prop_assume!(!compares_attributes);
        let written = query.to_string();
        let read = Query::parse(&written);
        prop_assert_eq!(read.as_ref(), Ok(&query), "{}", written);
    }

    /// Devices of a store are found exactly if the plain model says so of what their twins show.
    #[test]
    fn conditions_agree_with_a_plain_model(
        condition in small_expression(),
        twins in prop::collection::vec(prop::collection::vec(prop::option::of(leaf()), 3), 1..4),
    ) {
        let hub = Hub::new();
        for (index, values) in twins.iter().enumerate() {
            let id = ["a", "b", "c"][index];
            let value = |at: usize| values[at].clone().unwrap_or(Value::Null);
            hub.device(id, &json!({
                "tags": { "a": value(0), "b": value(1), "c": { "d": value(2) } },
                "properties": { "desired": { "a": value(1) } },
            }));
        }
        let whole = hub.ask("SELECT * FROM devices", 10);
        let mut expected: Vec<_> = whole
            .iter()
            .filter(|document| model(&condition, document) == Some(json!(true)))
            .map(|document| document["deviceId"].as_str().unwrap().to_owned())
            .collect();
        expected.sort();
        let query = Query {
            select: Select::All,
            top: None,
            source: Source::Devices,
            condition: Some(condition),
            group_by: Vec::new(),
        };
        let mut search = Search::new(hub.registry.clone(), "", query.clone(), 10, None).unwrap();
        let Ok(Progress::Page(page)) = search.advance(100) else { panic!("one slice is enough") };
        let mut found: Vec<_> = page.items.iter().map(|item| item["deviceId"].as_str().unwrap().to_owned()).collect();
        found.sort();
        prop_assert_eq!(found, expected, "{}", query);
    }

    /// Pages of any size give each group once and whole.
    #[test]
    fn groups_are_whole_on_every_page(kinds in prop::collection::vec(0u8..12, 0..40), items_max in 1usize..5) {
        let hub = Hub::new();
        for (index, kind) in kinds.iter().enumerate() {
            hub.device(&format!("d{index}"), &json!({ "tags": { "kind": kind } }));
        }
        let mut found: Vec<_> = hub
            .ask("SELECT tags.kind, COUNT() AS n FROM devices GROUP BY tags.kind", items_max)
            .iter()
            .map(|group| (group["kind"].as_u64().unwrap() as u8, group["n"].as_u64().unwrap() as usize))
            .collect();
        found.sort();
        let mut expected: Vec<_> = kinds.clone();
        expected.sort();
        expected.dedup();
        let expected: Vec<_> =
            expected.into_iter().map(|kind| (kind, kinds.iter().filter(|other| **other == kind).count())).collect();
        prop_assert_eq!(found, expected);
    }
}
