//! The attributes of a node, by name.

use std::cell::RefCell;
use std::collections::HashSet;

use super::value::Value;
use crate::runtime::onnx;

/// The attributes of a node. It records which were read, so that a model with an unknown attribute is rejected instead of being executed
/// without it.
pub(super) struct Attributes<'a> {
    all: &'a [onnx::Attribute],
    /// The version of the node's operator set.
    pub(super) version: i64,
    read: RefCell<HashSet<&'a [u8]>>,
}

impl<'a> Attributes<'a> {
    pub(super) fn new(all: &'a [onnx::Attribute], version: i64) -> Self {
        Self { all, version, read: RefCell::default() }
    }

    fn find(&self, name: &str) -> Option<&'a onnx::Attribute> {
        let found = self.all.iter().find(|attribute| attribute.name == name.as_bytes())?;
        self.read.borrow_mut().insert(&found.name);
        Some(found)
    }

    /// Fails if an attribute was never read.
    pub(super) fn all_read(&self) -> Result<(), String> {
        let read = self.read.borrow();
        match self.all.iter().find(|attribute| !read.contains(&attribute.name[..])) {
            Some(unknown) => Err(format!("attribute '{}' is not supported", String::from_utf8_lossy(&unknown.name))),
            None => Ok(()),
        }
    }

    /// Marks an attribute as read that does not change the result.
    pub(super) fn ignore(&self, name: &str) {
        self.find(name);
    }

    pub(super) fn int(&self, name: &str, default: i64) -> i64 {
        self.find(name).map_or(default, |attribute| attribute.i)
    }

    pub(super) fn flag(&self, name: &str, default: bool) -> bool {
        self.int(name, i64::from(default)) != 0
    }

    pub(super) fn optional_int(&self, name: &str) -> Option<i64> {
        self.find(name).map(|attribute| attribute.i)
    }

    pub(super) fn float(&self, name: &str, default: f32) -> f32 {
        self.find(name).map_or(default, |attribute| attribute.f)
    }

    pub(super) fn text(&self, name: &str, default: &str) -> String {
        self.find(name).map_or_else(|| default.into(), |attribute| String::from_utf8_lossy(&attribute.s).into_owned())
    }

    pub(super) fn floats(&self, name: &str) -> &'a [f32] {
        self.find(name).map_or(&[], |attribute| &attribute.floats)
    }

    pub(super) fn ints(&self, name: &str) -> &'a [i64] {
        self.find(name).map_or(&[], |attribute| &attribute.ints)
    }

    /// The list; `None` if the node does not have the attribute.
    pub(super) fn optional_ints(&self, name: &str) -> Option<&'a [i64]> {
        self.find(name).map(|attribute| &attribute.ints[..])
    }

    pub(super) fn texts(&self, name: &str) -> Vec<Vec<u8>> {
        self.find(name).map_or_else(Vec::new, |attribute| attribute.strings.iter().map(|s| s.to_vec()).collect())
    }

    pub(super) fn tensor(&self, name: &str) -> Result<Option<Value>, String> {
        self.find(name).and_then(|attribute| attribute.t.as_ref()).map(Value::from_onnx).transpose()
    }

    /// Numbers from a list of floats, or from the tensor attribute `NAME_as_tensor`, which has more precision.
    pub(super) fn numbers(&self, name: &str) -> Result<Vec<f64>, String> {
        match self.tensor(&format!("{name}_as_tensor"))? {
            Some(tensor) => tensor.to_f64(),
            None => Ok(self.floats(name).iter().map(|x| f64::from(*x)).collect()),
        }
    }
}
