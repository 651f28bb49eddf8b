//! Property tests of this crate's parsers; see `slipway_mutations`.

use std::path::Path;

use slipway_mutations::feed;

use crate::ini::Ini;
use crate::manifest::Manifest;
use crate::pipeline::template::Unpacking;
use crate::pipeline::{self, Files, params};
use crate::stage::Stage;
use crate::{lock, yaml};

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
    feed(&["slipway-digests3"], |text| drop(crate::state::parse(text.as_bytes(), 0)));
}

const PIPELINE: &str = "vars:\n- a: &x 1\n- other.json:k\nstages:\n  train:\n    foreach: {p: [1, two], q: '${list}'}\n    do:\n      cmd: run ${item[0]} ${key} ${d} \\${e}\n      params: [a, f.toml:, g.py: [k]]\n      wdir: sub\n      outs:\n      - m: {cache: false, persist: true}\n  grid:\n    matrix: {a: [1, *x], b: '${list}'}\n    cmd: x ${item.a}\nplots: [p: {x: a}]\n";
const LOCK: &str = "schema: '2.0'\nstages:\n  grid@1-1:\n    cmd: x 1\n    deps:\n    - path: d\n      md5: d41d8cd98f00b204e9800998ecf8427e\n      size: 0\n    params:\n      params.yaml:\n        a: 1e-05\n";

#[test]
fn pipelines_never_panic() {
    let load = |pipeline: &str, lock: &str, params: &str| {
        let read = |path: &Path| {
            Ok(match path.file_name().and_then(|name| name.to_str()) {
                Some("params.yaml") => Some(params.to_owned()),
                Some("other.json") => Some(r#"{"k": 1}"#.to_owned()),
                Some("dvc.lock") => Some(lock.to_owned()),
                _ => None,
            })
        };
        let mut files = Files::new(Path::new("/p"), &read);
        pipeline::load(Path::new("/p/dvc.yaml"), pipeline, &mut files, Unpacking::default())
    };
    let values = "list: [1, 2]\nd: {k: [1, x], b: true}\n";
    assert_eq!(load(PIPELINE, LOCK, values).map(|stages| stages.len()).unwrap_or_default(), 4);
    feed(&[PIPELINE], |text| drop(load(text, LOCK, values)));
    feed(&[LOCK], |text| drop(load(PIPELINE, text, values)));
    feed(&[values], |text| drop(load(PIPELINE, LOCK, text)));
}

#[test]
fn parameter_files_never_panic() {
    let files = [
        ("p.yaml", "a: {b: [1, 2.5, 0x1f], c: .inf}\n"),
        ("p.json", r#"{"a": {"b": [1, 2.5, null]}, "a": "x"}"#),
        ("p.toml", "a = 1\n[t.x]\nb = [1.5, \"y\"]\nd = 2020-01-01\n"),
        (
            "p.py",
            "a = {'x': (1, -2.5), \"y\": r'z'}\nclass C:\n    b: int = 0x1f\n    def __init__(self):\n        self.s = '''t\nu'''\n",
        ),
    ];
    for (name, text) in files {
        feed(&[text], |text| drop(params::parse(Path::new(name), text)));
    }
}
