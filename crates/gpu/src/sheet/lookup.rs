//! Finds a card by the driver's product name or by what people type.

use super::{Card, cards};

/// Words that make a product of its own out of a name that contains another one: the RTX 3080 Ti is no RTX 3080.
const OTHER_PRODUCTS: [&str; 9] = ["ti", "super", "d", "laptop", "mobile", "nvl", "nvl16", "vgpu", "mig"];

fn words(name: &str) -> Vec<String> {
    let name = name.to_ascii_lowercase();
    let split = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty() && *w != "nvidia");
    split.map(str::to_owned).collect()
}

/// How well a card answers a query; smaller is better, and `None` means not at all.
fn rank(query: &[String], card: &Card) -> Option<usize> {
    let name = words(card.name);
    if query == name {
        return Some(0);
    }
    let also = words(card.also);
    // "sxm" stands for every generation of the socket.
    let known = |w: &String| name.iter().chain(&also).any(|n| n == w || (w == "sxm" && n.starts_with("sxm")));
    if query.iter().all(known) {
        return Some(1);
    }
    // The driver's name can say more than the sheet's: "B300 SXM6 AC", "Tesla V100-SXM2-32GB-LS".
    let extra = query.iter().filter(|w| !name.contains(w));
    let contained = name.iter().all(|n| query.contains(n));
    (contained && extra.clone().all(|w| !OTHER_PRODUCTS.contains(&w.as_str()))).then(|| 2 + extra.count())
}

/// All cards that a name can mean, the best answer first: an exact name, then the cards whose names contain all words of the query
/// (the most common one first), then the cards whose names are part of the query.
pub fn candidates(name: &str) -> Vec<Card> {
    let query = words(name);
    if query.is_empty() {
        return Vec::new();
    }
    let mut found: Vec<(usize, Card)> = cards().into_iter().filter_map(|c| Some((rank(&query, &c)?, c))).collect();
    found.sort_by_key(|(rank, _)| *rank);
    // A card that is only a part of the query is no alternative to one that contains the whole of it.
    let best_is_part = found.first().is_some_and(|(rank, _)| *rank >= 2);
    found.truncate(if best_is_part { 1 } else { found.iter().take_while(|(rank, _)| *rank < 2).count() });
    found.into_iter().map(|(_, card)| card).collect()
}

/// The card that a name means: the exact one, the only one, or the most common one of several ([`candidates`] has the others).
pub fn find(name: &str) -> Option<Card> {
    candidates(name).into_iter().next()
}
