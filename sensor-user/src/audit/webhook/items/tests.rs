//! What is cut out of a body, against a parser that reads all of it.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{BadBody, Items};

fn cut(body: &[u8], at_once: usize) -> (Vec<String>, Option<BadBody>) {
    let (mut items, mut lines) = (Items::default(), Vec::new());
    let pushed = body.chunks(at_once).try_for_each(|chunk| items.push(chunk, &mut lines));
    let fault = pushed.and_then(|()| items.finish()).err();
    let text = String::from_utf8_lossy(&lines).into_owned();
    (text.split_terminator('\n').map(str::to_owned).collect(), fault)
}

#[test]
fn each_item_is_a_line_whatever_surrounds_it() {
    let cases: [(&str, &[&str], Option<BadBody>); 27] = [
        (r#"{"kind":"EventList","items":[{"a":1},{"b":2}]}"#, &[r#"{"a":1}"#, r#"{"b":2}"#], None),
        (r#"{"items":[{"a":1}],"kind":"EventList"}"#, &[r#"{"a":1}"#], None),
        (r#" { "items" : [ {"a":1} , {} ] } "#, &[r#"{"a":1} "#, "{} "], None),
        ("{\"items\":[{\n  \"a\": [\n1]\r\n}]}\n", &["{   \"a\": [ 1]  }"], None),
        (r#"{"items":[]}"#, &[], None),
        (r#"{"items":null,"kind":"EventList"}"#, &[], None),
        (r#"{"metadata":{"items":[{"a":1}]},"items":[{"b":2}]}"#, &[r#"{"b":2}"#], None),
        (r#"{"metadata":{"kind":"PodList"},"items":[]}"#, &[], None),
        (r#"{"note":"items","items":[{"b":"]}"}]}"#, &[r#"{"b":"]}"}"#], None),
        (r#"{"a":"\"items\":[{}]","items":[{"b":"\\"}]}"#, &[r#"{"b":"\\"}"#], None),
        (r#"{"items":[{"items":[{"a":1}]}]}"#, &[r#"{"items":[{"a":1}]}"#], None),
        (r#"{"items":[{"kind":"Event"}]}"#, &[r#"{"kind":"Event"}"#], None),
        (r#"{"items":[1,"a",null,[2,3]]}"#, &["1", "\"a\"", "null", "[2,3]"], None),
        (r#"{"items":[{"a":1}],"items":[{"b":2}]}"#, &[r#"{"a":1}"#, r#"{"b":2}"#], None),
        ("{\"items\":[{\"a\":\"x\ny\"}]}", &[r#"{"a":"x y"}"#], None),
        (r#"{"items":[{"a":1},{"b":"#, &[r#"{"a":1}"#, r#"{"b":"#], Some(BadBody::Torn)),
        (r#"{"items":[{"a":1}]"#, &[r#"{"a":1}"#], Some(BadBody::Torn)),
        (r#"{"items":[{"a":1}]}{"items":[{}]}"#, &[r#"{"a":1}"#], Some(BadBody::NotJson)),
        (r#"{"items":[{"a":1}]}}"#, &[r#"{"a":1}"#], Some(BadBody::NotJson)),
        (r#"{"kind":"PodList","items":[{"a":1}]}"#, &[], Some(BadBody::WrongKind)),
        (r#"{"kind":"Event","auditID":"x"}"#, &[], Some(BadBody::WrongKind)),
        (r#"{"kind":"EventList"}"#, &[], Some(BadBody::NoItems)),
        (r#"{"itemsitemsitemsitemsitemsitemsitems":[{}]}"#, &[], Some(BadBody::NoItems)),
        ("[{\"items\":[]}]", &[], Some(BadBody::NotJson)),
        ("POST / HTTP/1.1", &[], Some(BadBody::NotJson)),
        ("\u{0}\u{1}", &[], Some(BadBody::NotJson)),
        ("", &[], Some(BadBody::Torn)),
    ];
    for (body, items, fault) in cases {
        for at_once in [1, 2, 7, 4096] {
            let items = items.iter().map(|item| (*item).to_owned()).collect();
            assert_eq!(cut(body.as_bytes(), at_once), (items, fault), "{body} by {at_once}");
        }
    }
}

#[test]
fn depth_costs_nothing() {
    let deep =
        format!(r#"{{"a":{}{},"items":[{{"b":1}}]}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(cut(deep.as_bytes(), 4096), (vec![r#"{"b":1}"#.to_owned()], None));
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z\"\\\\\\[\\]{}:,\n ]{0,12}".prop_map(Value::from),
        Just(json!("items")),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let key =
            prop_oneof!["[a-c\"{\\\\]{0,3}", Just("items".to_owned()), Just("kind".to_owned())];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((key, inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_cut_is_what_a_parser_finds(
        items in proptest::collection::vec(value(), 0..6),
        metadata in value(),
        pretty in any::<bool>(),
        at_once in 1_usize..64,
    ) {
        let list = json!({"kind": "EventList", "metadata": metadata, "items": items});
        let body = if pretty { serde_json::to_string_pretty(&list) } else { serde_json::to_string(&list) };
        let (lines, fault) = cut(body.unwrap().as_bytes(), at_once);
        prop_assert_eq!(fault, None);
        let found: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        prop_assert_eq!(found, items);
    }

    #[test]
    fn whatever_comes_the_size_of_the_pieces_makes_no_difference(
        body in "[{}\\[\\]:,\"\\\\a\n]{0,80}|\\{\"items\":\\[[{}\\[\\]:,\"\\\\a]{0,60}",
        at_once in 1_usize..16,
    ) {
        prop_assert_eq!(cut(body.as_bytes(), at_once), cut(body.as_bytes(), 4096));
    }
}
