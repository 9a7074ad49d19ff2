//! Who only looks, while what he looks at goes.

use std::sync::{Arc, Mutex};

use vdsmstore_core::ErrorKind;
use vdsmstore_core::options::ListOptions;

use super::{Works, begin, does, held, prepare, stays};
use crate::judge;
use crate::operation::remove;
use crate::scene::{SIZE, Storage, named};

/// An image with user data is removed for good, or gets other data: lists have all others, and nothing is taken for damaged.
#[test]
fn lists_while_images_go() {
    let mut start = begin("create on a snapshot", Storage::Overlays);
    let mut all = 0;
    prepare(&mut start, |store, scene| {
        store.create_virtual_disk("A", Some(SIZE as i64), None, "{\"n\":1}", &named(scene, "new")).unwrap();
        all = store.list_images("A", &ListOptions::default()).unwrap().len();
    });
    for removes in [true, false] {
        let mut seen = [0; 3];
        for step in 1.. {
            let scene = start.copy();
            let outcome = Arc::new(Mutex::new(None));
            let works: Works<'_> = [
                &|scene| {
                    let (scene, outcome) = (scene.clone(), outcome.clone());
                    Box::new(move |store| {
                        let infos = store.list_image_infos("A", &ListOptions::default());
                        let nodes = store.graph("A");
                        let info = store.get_image_info("A", scene.id("new"));
                        *outcome.lock().unwrap() = Some((infos, nodes, info));
                    })
                },
                &does(move |store, scene| {
                    if removes {
                        remove(store, 0, scene, "new").unwrap();
                        judge::repair_politely(store, "who removes");
                    } else {
                        store.set_image_user_data("A", scene.id("new"), "{\"n\":2}").unwrap();
                    }
                }),
            ];
            if held(&scene, step, None, works, stays).is_none() {
                assert!(step > 20, "{step}");
                break;
            }
            let what = format!("removes: {removes}, held at step {step}");
            let (infos, nodes, info) = outcome.lock().unwrap().take().unwrap();
            let id = scene.id("new");
            let infos = infos.unwrap_or_else(|error| panic!("{what}: {error:?}"));
            let nodes = nodes.unwrap_or_else(|error| panic!("{what}: {error:?}"));
            let others = infos.iter().filter(|info| info.image_id.to_string() != id).count();
            assert_eq!(others, all - 1, "{what}: {infos:?}");
            assert!(nodes.len() >= others, "{what}: {nodes:?}");
            match info {
                Ok(info) => {
                    let text = info.user_data.get();
                    assert!(["{\"n\":1}", "{\"n\":2}"].contains(&text), "{what}: {text}");
                    seen[usize::from(text == "{\"n\":2}")] += 1;
                }
                Err(error) => {
                    assert!(removes && error.kind() == ErrorKind::ImageNotFound, "{what}: {error:?}");
                    seen[2] += 1;
                }
            }
        }
        assert!(seen[0] > 0 && seen[if removes { 2 } else { 1 }] > 0, "{seen:?}");
    }
}
