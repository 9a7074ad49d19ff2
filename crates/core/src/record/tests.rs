use super::*;

const ID: &str = "11111111-2222-4333-8444-555555555555";

fn volume_json() -> Value {
    serde_json::json!({
        "schema": 1, "id": ID, "gen": 1, "epoch": 1, "nonce": ID, "owner": {"host": "h", "incarnation": ID},
        "format": "qcow2", "size": 1_048_576, "backing": {"image": ID, "size": 512}, "mirror": null,
        "state": "ready", "fill": null, "later": {"a": [1, 2]},
    })
}

fn parse(value: &Value) -> Result<VolumeRecord> {
    VolumeRecord::parse(Uuid::try_parse(ID).unwrap(), value.to_string().as_bytes())
}

#[test]
fn unknown_fields_survive() {
    let record = parse(&volume_json()).unwrap();
    assert_eq!(serde_json::to_value(&record).unwrap(), volume_json());
}

#[test]
fn hostile_records_are_refused() {
    let mutations: &[(&str, Value, ErrorKind)] = &[
        ("id", Value::from("11111111-2222-4333-8444-555555555556"), ErrorKind::CorruptRecord),
        ("schema", Value::from(2), ErrorKind::VersionTooNew),
        ("size", Value::from(0), ErrorKind::CorruptRecord),
        ("size", Value::from(511), ErrorKind::CorruptRecord),
        ("size", Value::from(-512), ErrorKind::CorruptRecord),
        ("size", Value::from(1_u64 << 53), ErrorKind::CorruptRecord),
        ("format", Value::from("vmdk"), ErrorKind::CorruptRecord),
        ("format", Value::from("raw"), ErrorKind::CorruptRecord),
        ("state", Value::from("filling"), ErrorKind::CorruptRecord),
        ("backing", serde_json::json!({"image": "../../etc/passwd", "size": 512}), ErrorKind::CorruptRecord),
        ("backing", serde_json::json!({"image": ID, "size": 513}), ErrorKind::CorruptRecord),
        ("gen", Value::Null, ErrorKind::CorruptRecord),
    ];
    for (field, value, kind) in mutations {
        let mut json = volume_json();
        json[*field] = value.clone();
        assert_eq!(parse(&json).unwrap_err().kind(), *kind, "{field} = {value}");
    }
    let id = Uuid::try_parse(ID).unwrap();
    for bytes in [&b""[..], b"{", b"[]", b"null", b"\xff\xff", b"{\"schema\":1}"] {
        assert_eq!(VolumeRecord::parse(id, bytes).unwrap_err().kind(), ErrorKind::CorruptRecord);
        assert_eq!(ImageRecord::parse(id, bytes).unwrap_err().kind(), ErrorKind::CorruptRecord);
    }
}
