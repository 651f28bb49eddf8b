//! Data of other repositories, and at URLs: what a repository contains at a revision, whether Git or DVC tracks it, and how its files get here.
//!
//! A repository in a local folder is read in place. Of others there is a mirror in the user's cache folder.

mod content;
pub mod location;
pub mod repository;

pub(crate) use crate::scm::url::{check as check_url, redact};
pub use content::Tracked;
pub use location::Location;
pub use repository::{Kind, Node, Options, Repository};
