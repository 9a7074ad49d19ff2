use serde_json::value::RawValue;
use vdsmstore_core::{GraphNode, ImageId, Status};

use super::tree::Forest;
use super::{dot, svg, text};

fn id(number: u32) -> ImageId {
    ImageId::parse(&format!("00000000-0000-4000-8000-{number:012}")).unwrap()
}

fn node(number: u32, base: Option<u32>, kind: &str, name: &str) -> GraphNode {
    let user_data = if name.is_empty() { "{}".to_owned() } else { format!("{{\"name\":\"{name}\"}}") };
    GraphNode {
        image_id: id(number),
        kind: kind.to_owned(),
        status: Status::Optimized,
        size: 1 << 30,
        allocated: 3 << 20,
        base: base.map(id),
        user_data: RawValue::from_string(user_data).unwrap(),
    }
}

fn family() -> Vec<GraphNode> {
    vec![
        node(4, Some(3), "disk", "web"),
        node(1, None, "snapshot", "golden"),
        node(2, Some(1), "disk", "db"),
        node(3, Some(1), "hidden", ""),
        node(5, None, "disk", ""),
        node(6, Some(9), "disk", "half"),
    ]
}

#[test]
fn text_puts_bases_above_their_dependents() {
    let drawn = text::draw(&Forest::new(family()), false);
    let expected = "\
00000000-0000-4000-8000-000000000001        snapshot  optimized      1G      3M  golden
├─ 00000000-0000-4000-8000-000000000002     disk      optimized      1G      3M  db
└─ 00000000-0000-4000-8000-000000000003     hidden    optimized      1G      3M
   └─ 00000000-0000-4000-8000-000000000004  disk      optimized      1G      3M  web
00000000-0000-4000-8000-000000000005        disk      optimized      1G      3M
00000000-0000-4000-8000-000000000009        missing
└─ 00000000-0000-4000-8000-000000000006     disk      optimized      1G      3M  half
";
    assert_eq!(drawn, expected);
}

#[test]
fn colours_are_only_added() {
    let forest = Forest::new(family());
    let mut plain = String::new();
    let mut rest = text::draw(&forest, true);
    while let Some(start) = rest.find('\x1b') {
        plain += &rest[..start];
        rest = rest[start + rest[start..].find('m').unwrap() + 1..].to_owned();
    }
    let trimmed = |text: &str| text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    assert_eq!(trimmed(&(plain + &rest)), trimmed(&text::draw(&forest, false)));
}

#[test]
fn an_empty_repository_can_be_drawn() {
    let forest = Forest::new(Vec::new());
    assert_eq!(text::draw(&forest, false), "");
    assert!(svg::draw(&forest, "A").ends_with("</svg>\n"));
    assert!(dot::draw(&forest, "A").ends_with("}\n"));
}

#[test]
fn a_base_stands_in_the_middle_of_its_dependents() {
    let forest = Forest::new(vec![
        node(1, None, "snapshot", "s"),
        node(2, Some(1), "disk", "a"),
        node(3, Some(1), "disk", "b"),
        node(4, Some(1), "disk", "c"),
    ]);
    let places = forest.layout();
    let row = |number| places.iter().find(|p| forest.node(p.node).image.image_id == id(number)).unwrap().row;
    assert_eq!([row(1), row(2), row(3), row(4)].map(f64::to_bits), [1.0, 0.0, 1.0, 2.0].map(f64::to_bits));
}

#[test]
fn no_two_images_stand_in_one_place() {
    let mut nodes = vec![node(0, None, "snapshot", "root")];
    nodes.extend((1..200).map(|number| node(number, Some((number - 1) / 3), "disk", "")));
    let forest = Forest::new(nodes);
    let places = forest.layout();
    assert_eq!(places.len(), 200);
    for (position, a) in places.iter().enumerate() {
        for b in &places[..position] {
            assert!(a.depth != b.depth || (a.row - b.row).abs() >= 1.0, "{a:?} {b:?}");
        }
    }
}

#[test]
fn circles_and_long_chains_are_drawn() {
    let circle =
        vec![node(1, Some(2), "disk", ""), node(2, Some(1), "disk", ""), node(3, Some(3), "disk", "")];
    let forest = Forest::new(circle);
    assert_eq!(text::draw(&forest, false).lines().count(), 3);
    assert_eq!(forest.layout().len(), 3);
    let chain = (0..2000).map(|n: u32| node(n, n.checked_sub(1), "snapshot", "")).collect();
    let forest = Forest::new(chain);
    assert_eq!(forest.layout().iter().map(|place| place.depth).max(), Some(1999));
    assert_eq!(text::draw(&forest, false).lines().count(), 2000);
}

#[test]
fn names_are_escaped() {
    let mut nodes = vec![node(1, None, "disk", "a<b>&\\\"c\\n")];
    nodes.push(node(2, Some(1), "disk", ""));
    let forest = Forest::new(nodes);
    let picture = svg::draw(&forest, "<A>");
    assert!(picture.contains("a&lt;b&gt;&amp;&quot;c") && picture.contains("&lt;A&gt;"));
    assert_eq!(picture.matches("<path d=\"M").count(), 2, "the tip and one edge");
    let graph = dot::draw(&forest, "A");
    assert!(graph.contains("a<b>&\\\"c \\n00000000"), "{graph}");
    assert!(graph.contains("000000000002\" -> \"00000000-0000-4000-8000-000000000001\";"));
}

#[test]
fn a_picture_has_room_for_twenty_images() {
    let mut nodes = vec![node(0, None, "snapshot", "root")];
    nodes.extend((1..20).map(|number| node(number, Some(number / 4), "disk", &format!("disk {number}"))));
    let picture = svg::draw(&Forest::new(nodes), "A");
    assert_eq!(picture.matches("<g>").count(), 20);
    if let Some(path) = std::env::var_os("VDSMSTORE_TEST_SVG") {
        std::fs::write(path, picture).unwrap();
    }
}
