//! Every compiled pipeline of Kubeflow's repository is read, survives a round trip, and has the graph that its YAML says.
//!
//! The files are not part of the repository. They are in the folder `corpus/kubeflow/pipelines` of `SLIPWAY_SHARED`, or of the folder
//! `shared` beside the repository. The test passes if they are absent.

#![allow(clippy::unwrap_used, clippy::panic)] // these are tests

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;
use slipway_pipeline::graph::{Graph, Graphs, NodeKind};
use slipway_pipeline::ir::{Document, read, read_json, to_json};

fn files() -> Vec<PathBuf> {
    let shared = std::env::var_os("SLIPWAY_SHARED")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")), PathBuf::from);
    let mut files = Vec::new();
    for folder in ["corpus/kubeflow/pipelines", "cases/kubeflow"] {
        let folder = shared.join(folder);
        let Ok(entries) = std::fs::read_dir(&folder) else {
            eprintln!("skipped: {} is absent", folder.display());
            continue;
        };
        files.extend(
            entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "yaml")),
        );
    }
    files.sort();
    files
}

fn documents() -> Vec<(String, String, Document)> {
    let mut documents = Vec::new();
    let mut faults = Vec::new();
    for file in files() {
        let text = std::fs::read_to_string(&file).unwrap();
        if !text.contains("schemaVersion") {
            continue; // cases of other projects
        }
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        match read(&text) {
            Ok(document) => documents.push((name, text, document)),
            Err(error) => faults.push(format!("{name}:\n{error}")),
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    documents
}

#[test]
fn every_file_is_read_and_survives_a_round_trip() {
    for (name, _, document) in documents() {
        let json = to_json(&document);
        assert_eq!(read_json(json.clone()).unwrap(), document, "{name}");
        assert_eq!(read(&json.to_string()).unwrap(), document, "{name}");
    }
}

#[test]
fn every_graph_is_the_one_that_the_yaml_says() {
    for (name, text, document) in documents() {
        let parts: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        let spec = parts.iter().find(|part| part.get("root").is_some()).unwrap();
        let graphs = Graphs::new(&document);
        let mut compared = BTreeSet::new();
        compare(&name, spec, &spec["root"], &graphs.root, &graphs, &mut compared);
        let compared: Vec<&String> = compared.iter().collect();
        assert_eq!(compared, graphs.components.keys().collect::<Vec<_>>(), "{name}");
    }
}

fn compare(
    name: &str,
    spec: &Value,
    component: &Value,
    graph: &Graph,
    graphs: &Graphs,
    compared: &mut BTreeSet<String>,
) {
    let tasks = component["dag"]["tasks"].as_object().unwrap();
    let names: Vec<&String> = graph.nodes.iter().map(|node| &node.name).collect();
    assert_eq!(names, tasks.keys().collect::<Vec<_>>(), "{name}");
    let mut expected = BTreeSet::new();
    for (to, task) in tasks {
        let mut add = |from: &Value| {
            expected.insert((from.as_str().unwrap().to_owned(), to.clone()));
        };
        task["dependentTasks"].as_array().into_iter().flatten().for_each(&mut add);
        for inputs in ["parameters", "artifacts"] {
            for input in task["inputs"][inputs].as_object().into_iter().flat_map(|inputs| inputs.values()) {
                input.as_object().unwrap().values().filter_map(|source| source.get("producerTask")).for_each(&mut add);
            }
        }
    }
    let edges: BTreeSet<_> = graph.edges.iter().map(|edge| (edge.from.clone(), edge.to.clone())).collect();
    assert_eq!(edges, expected, "{name}");
    for node in &graph.nodes {
        let task = &tasks[&node.name];
        let iterator = task.get("parameterIterator").or(task.get("artifactIterator"));
        assert_eq!(node.iterates.is_some(), iterator.is_some(), "{name}: {}", node.name);
        if let Some(text) = iterator.and_then(|iterator| iterator["items"]["raw"].as_str()) {
            let items: Vec<Value> = serde_json::from_str(text).unwrap();
            assert_eq!(node.iterates.as_ref().unwrap().count, Some(items.len()), "{name}: {}", node.name);
        }
        assert_eq!(node.condition.as_deref(), task["triggerPolicy"]["condition"].as_str(), "{name}: {}", node.name);
        assert_eq!(
            node.runs_after_failures,
            task["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED",
            "{name}"
        );
        let reference = task["componentRef"]["name"].as_str().unwrap();
        assert_eq!(node.component, reference, "{name}");
        let inner = &spec["components"][reference];
        assert_eq!(node.kind == NodeKind::Graph, inner.get("dag").is_some(), "{name}: {}", node.name);
        if node.kind == NodeKind::Graph && compared.insert(reference.to_owned()) {
            compare(name, spec, inner, graphs.inside(node).unwrap(), graphs, compared);
        }
    }
}
