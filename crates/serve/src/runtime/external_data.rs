//! Checks the external data of ONNX models: weights in separate files, named by path (`TensorProto.external_data` of `onnx.proto`).
//!
//! Without a check, a registered model could name any file of the server and expose it through the model's outputs; not every version of
//! ONNX Runtime rejects that. Invariant: the paths are checked before any runtime opens the model.

use std::path::{Component, Path};

use bytes::Bytes;

use super::onnx;
use crate::Error;

/// Reads the model at `path`, and checks that all of its external data is inside the model's folder.
///
/// # Errors
/// [`Error::ModelUnusable`] for data outside the folder, and for a file that is not an ONNX model; [`Error::ModelNotFound`] when there is
/// no file, and [`Error::Model`] when it cannot be read.
pub(super) fn read_checked(path: &Path) -> Result<onnx::Model, Error> {
    let file = std::fs::read(path).map_err(|e| {
        let message = format!("cannot read {}: {e}", path.display());
        match e.kind() {
            std::io::ErrorKind::NotFound => Error::ModelNotFound(message),
            _ => Error::Model(message),
        }
    })?;
    let model = <onnx::Model as prost::Message>::decode(Bytes::from(file))
        .map_err(|e| Error::ModelUnusable(format!("{} is not an ONNX model: {e}", path.display())))?;
    let mut locations = Vec::new();
    model.graph.iter().for_each(|graph| collect_from_graph(graph, &mut locations));
    for training in &model.training_info {
        training
            .initialization
            .iter()
            .chain(&training.algorithm)
            .for_each(|graph| collect_from_graph(graph, &mut locations));
    }
    for function in &model.functions {
        function.node.iter().for_each(|node| collect_from_attributes(&node.attribute, &mut locations));
        collect_from_attributes(&function.attribute_proto, &mut locations);
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    locations.into_iter().try_for_each(|location| check_location(folder, location))?;
    Ok(model)
}

fn collect_from_graph<'a>(graph: &'a onnx::Graph, found: &mut Vec<&'a [u8]>) {
    graph.node.iter().for_each(|node| collect_from_attributes(&node.attribute, found));
    graph.initializer.iter().for_each(|tensor| collect_from_tensor(tensor, found));
    graph.sparse_initializer.iter().for_each(|tensor| collect_from_sparse_tensor(tensor, found));
}

fn collect_from_attributes<'a>(attributes: &'a [onnx::Attribute], found: &mut Vec<&'a [u8]>) {
    for attribute in attributes {
        attribute.t.iter().chain(&attribute.tensors).for_each(|tensor| collect_from_tensor(tensor, found));
        attribute.g.iter().chain(&attribute.graphs).for_each(|graph| collect_from_graph(graph, found));
        attribute
            .sparse_tensor
            .iter()
            .chain(&attribute.sparse_tensors)
            .for_each(|tensor| collect_from_sparse_tensor(tensor, found));
    }
}

fn collect_from_sparse_tensor<'a>(tensor: &'a onnx::SparseTensor, found: &mut Vec<&'a [u8]>) {
    tensor.values.iter().chain(&tensor.indices).for_each(|tensor| collect_from_tensor(tensor, found));
}

fn collect_from_tensor<'a>(tensor: &'a onnx::Tensor, found: &mut Vec<&'a [u8]>) {
    let locations = tensor.external_data.iter().filter(|entry| entry.key == "location");
    found.extend(locations.map(|entry| entry.value.as_ref()));
}

fn check_location(folder: &Path, location: &[u8]) -> Result<(), Error> {
    let reject = |why: &str| {
        let location = String::from_utf8_lossy(location);
        Err(Error::ModelUnusable(format!("the model's external data '{}' {why}", location.escape_debug())))
    };
    let Ok(relative) = std::str::from_utf8(location).map(Path::new) else {
        return reject("has a name that is not UTF-8");
    };
    let is_relative = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !relative.components().all(is_relative) || location.contains(&0) {
        return reject("is outside the model's folder");
    }
    // A symbolic link inside the folder may still point outside it.
    match (folder.canonicalize(), folder.join(relative).canonicalize()) {
        (Ok(folder), Ok(file)) if file.starts_with(&folder) => Ok(()),
        (Ok(_), Ok(_)) => reject("is outside the model's folder"),
        _ => reject("is missing"),
    }
}

/// Reads the external data of the constants of a graph into memory. The locations must have passed [`read_checked`].
///
/// # Errors
/// The reason why the data of a constant cannot be read.
pub(super) fn read_constants(graph: &mut onnx::Graph, folder: &Path) -> Result<(), String> {
    for tensor in graph.initializer.iter_mut().filter(|tensor| !tensor.external_data.is_empty()) {
        let read = || -> Result<Bytes, String> {
            let value = |key: &str| tensor.external_data.iter().find(|e| e.key == key.as_bytes()).map(|e| &e.value[..]);
            let text = |value| std::str::from_utf8(value).map_err(|e| e.to_string());
            let number = |key| value(key).map(|v| text(v)?.parse::<usize>().map_err(|e| e.to_string())).transpose();
            let location = text(value("location").ok_or("it has no location")?)?;
            let file = Bytes::from(std::fs::read(folder.join(location)).map_err(|e| e.to_string())?);
            let start = number("offset")?.unwrap_or(0);
            let end = number("length")?.map_or(Some(file.len()), |length| start.checked_add(length));
            let end = end.filter(|end| start <= *end && *end <= file.len()).ok_or("the file is too short")?;
            Ok(file.slice(start..end))
        };
        let name = String::from_utf8_lossy(&tensor.name);
        let data = read().map_err(|reason| format!("the external data of constant '{name}': {reason}"))?;
        tensor.raw = Some(data);
        tensor.external_data.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::testing::{builtin, floats, folder, onnx, onnx_runtime, row};

    #[test]
    fn external_data_outside_the_model_folder_is_rejected() {
        let outside = folder();
        let secret = outside.path().join("secret");
        std::fs::write(&secret, 42f32.to_le_bytes()).unwrap();
        let models = folder();
        let path = models.path().join("model.onnx");
        std::fs::write(models.path().join("factor"), 3f32.to_le_bytes()).unwrap();
        std::os::unix::fs::symlink(&secret, models.path().join("link")).unwrap();
        let parent = format!("../{}/secret", outside.path().file_name().unwrap().to_str().unwrap());
        for (location, why) in [
            (secret.to_str().unwrap(), "outside the model's folder"),
            (parent.as_str(), "outside the model's folder"),
            ("./../model.onnx", "outside the model's folder"),
            ("link", "outside the model's folder"),
            ("nowhere", "is missing"),
        ] {
            for place in onnx::Place::ALL {
                std::fs::write(&path, onnx::scale_by_file(location, place)).unwrap();
                let error = builtin().load(&path).err().unwrap().to_string();
                assert!(error.contains(why), "{location} in {place:?}: {error}");
            }
        }
        std::fs::write(&path, onnx::scale_by_file("factor", onnx::Place::Initializer)).unwrap();
        let outputs = builtin().load(&path).unwrap().run(&row(2.0)).unwrap();
        assert_eq!(floats(&outputs[0]), [6.0, -6.0]);
        std::fs::write(&path, "not a model").unwrap();
        assert!(builtin().load(&path).err().unwrap().to_string().contains("is not an ONNX model"));
    }

    #[test]
    #[ignore = "needs libonnxruntime"]
    fn onnxruntime_reads_external_data_inside_the_model_folder() {
        let models = folder();
        let path = models.path().join("model.onnx");
        std::fs::write(models.path().join("factor"), 3f32.to_le_bytes()).unwrap();
        std::fs::write(&path, onnx::scale_by_file("factor", onnx::Place::Initializer)).unwrap();
        let outputs = onnx_runtime().load(&path).unwrap().run(&row(2.0)).unwrap();
        assert_eq!(floats(&outputs[0]), [6.0, -6.0]);
        std::fs::write(&path, onnx::scale_by_file("../factor", onnx::Place::Initializer)).unwrap();
        assert!(onnx_runtime().load(&path).err().unwrap().to_string().contains("outside the model's folder"));
    }
}
