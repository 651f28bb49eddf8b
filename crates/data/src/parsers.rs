//! Property tests of this crate's parsers; see `slipway_mutations`.

use std::path::Path;

use slipway_mutations::feed;

use crate::ini::Ini;
use crate::manifest::Manifest;
use crate::stage::Stage;
use crate::{lock, project, yaml};

const FILE: &str = "# data\nouts:\n- md5: 8b3662b0d460701f7734cdf533c5aa85.dir # digest\n  size: 4\n  nfiles: 2\n  hash: md5\n  path: 'a: b'\n  meta: {x: [1, two], y: \"q\\n\"}\ndesc: |\n  one\n   two\nwdir: ..\nfrozen: true\nlong: a b\n  c d\n";

#[test]
fn dvc_files_never_panic() {
    feed(&[FILE, "outs:\n- md5: d41d8cd98f00b204e9800998ecf8427e\n  path: x\n"], |text| {
        let Ok(value) = yaml::parse(text) else { return };
        drop(yaml::parse(&yaml::emit(&value)));
        if let Ok(mut stage) = Stage::parse(Path::new("/p/x.dvc"), Path::new("/p"), text.to_owned()) {
            stage.outs.iter_mut().for_each(|out| out.meta.size = Some(7));
            drop(stage.to_text());
        }
    });
}

#[test]
fn configurations_never_panic() {
    let text =
        "# ours\n[core]\n    remote = loc  # default\n['remote \"loc\"']\n    url = ../x\n    type = reflink,copy\n";
    feed(&[text], |text| {
        let Ok(ini) = Ini::parse(text) else { return };
        drop(Ini::parse(&ini.to_text(&[], &[])));
    });
}

#[test]
fn files_are_written_as_they_are_read() {
    let value = yaml::parse(FILE).unwrap();
    assert_eq!(yaml::parse(&yaml::emit(&value)), Ok(value));
    let text = "# ours\n[core]\n    remote = loc  # default\n";
    let written = Ini::parse(text).unwrap().to_text(&[], &[]);
    assert_eq!(Ini::parse(&written).unwrap().to_text(&[], &[]), written);
}

#[test]
fn other_parsers_never_panic() {
    let manifest = "[{\"md5\": \"60b725f10c9c85c70d97880dfe8191b3\", \"relpath\": \"sub/\\u00e9\"}]";
    feed(&[manifest], |text| {
        if let Ok(manifest) = Manifest::parse(text.as_bytes()) {
            drop(Manifest::parse(&manifest.to_bytes()));
        }
    });
    feed(&["{\"write\": {\"/p\": {\"pid\": 1, \"cmd\": \"x\"}}, \"read\": {}}"], |text| {
        drop(lock::parse_rwlock(text.as_bytes()));
    });
    feed(&["stages:\n  train:\n    cmd: x\n    outs:\n    - m:\n        cache: false\n"], |text| {
        drop(project::uncached_outputs(text));
        drop(Stage::parse_lock(Path::new("/p/dvc.lock"), Path::new("/p"), text, &|_, _| false));
    });
    feed(&["slipway-digests1"], |text| drop(crate::state::parse(text.as_bytes())));
}
