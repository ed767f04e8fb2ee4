//! What a comparison of images for several platforms found.
//!
//! In: which platforms only one has, and a report for each that both have. Out: text, or JSON. What always holds: two that
//! list the same images, each for the same platform, are equal only if their indexes are the same too.

use serde_json::{Value, json};

use super::report::Report;
use crate::digest::{ContentDigest, ImageId};
use crate::image::platform::Platform;

/// All that differs between two, of which one at least is an index.
#[derive(Debug, PartialEq)]
pub(super) struct IndexReport {
    pub(super) names: [String; 2],
    pub(super) ids: [ImageId; 2],
    pub(super) contents: [Option<ContentDigest>; 2],
    /// Platforms that only the first has, and only the second.
    pub(super) only: [Vec<Platform>; 2],
    /// Those that both have.
    pub(super) same: Vec<(Platform, Report)>,
}

impl IndexReport {
    /// Whether nothing differs.
    pub(super) fn is_empty(&self) -> bool {
        self.ids[0] == self.ids[1]
    }

    /// For people; empty where nothing differs.
    pub(super) fn text(&self) -> String {
        if self.is_empty() {
            return String::new();
        }
        let mut text =
            format!("- {} image {}\n+ {} image {}\n", self.names[0], self.ids[0], self.names[1], self.ids[1]);
        if let [Some(a), Some(b)] = self.contents
            && a == b
        {
            text.push_str(&format!("  the content is the same, {a}: only times differ\n"));
        }
        let images_differ = self.same.iter().any(|(_, report)| !report.is_empty());
        if self.only.iter().all(Vec::is_empty) && !images_differ {
            text.push_str("  the images are the same; they are listed differently\n");
        }
        for (platforms, which) in self.only.iter().zip(["first", "second"]) {
            for platform in platforms {
                text.push_str(&format!("{platform}: only in the {which}\n"));
            }
        }
        for (platform, report) in self.same.iter().filter(|(_, report)| !report.is_empty()) {
            text.push_str(&format!("{platform}\n"));
            report.text().lines().for_each(|line| text.push_str(&format!("  {line}\n")));
        }
        text
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let side = |number: usize| {
            json!({
                "name": self.names[number],
                "id": self.ids[number].to_string(),
                "content": self.contents[number].map(|content| content.to_string()),
            })
        };
        let only = |number: usize, change: &'static str| {
            let platforms = self.only[number].iter();
            platforms.map(move |platform| json!({"platform": platform.to_string(), "change": change}))
        };
        let both = self.same.iter().map(|(platform, report)| {
            let mut value = report.json();
            value["platform"] = json!(platform.to_string());
            value["change"] = json!(if report.is_empty() { "none" } else { "changed" });
            value
        });
        json!({
            "equal": self.is_empty(),
            "a": side(0),
            "b": side(1),
            "platforms": both.chain(only(0, "removed")).chain(only(1, "added")).collect::<Vec<_>>(),
        })
    }
}
