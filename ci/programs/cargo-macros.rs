//! A procedural macro: many structures and functions from a number.

use proc_macro::TokenStream;
use std::fmt::Write;

/// `shapes!(N)`: N modules with a structure each, and a function `areas` over all of them.
#[proc_macro]
pub fn shapes(input: TokenStream) -> TokenStream {
    let count: usize = input.to_string().parse().expect("a number");
    let mut code = String::new();
    for i in 0..count {
        write!(
            code,
            "mod shape{i} {{
                #[derive(Clone, Debug, Default, PartialEq, PartialOrd)]
                pub struct Shape {{ pub name: String, pub sides: Vec<u64>, pub inner: Option<Box<Shape>> }}
                impl Shape {{
                    pub fn new(depth: u64) -> Self {{
                        Self {{
                            name: format!(\"shape {i} at {{depth}}\"),
                            sides: (0..depth * {i} % 23).map(|n| n * n + {i}).collect(),
                            inner: (depth > 0).then(|| Box::new(Self::new(depth - 1))),
                        }}
                    }}
                    pub fn area(&self) -> u64 {{
                        self.sides.iter().sum::<u64>() + self.name.len() as u64 + self.inner.as_ref().map_or(0, |s| s.area())
                    }}
                }}
            }}
            "
        )
        .expect("a string can be written to");
    }
    write!(code, "pub fn areas(depth: u64) -> Vec<(String, u64)> {{ vec![").expect("a string can be written to");
    for i in 0..count {
        write!(code, "{{ let s = shape{i}::Shape::new(depth).clone(); (format!(\"{{s:?}}\"), s.area()) }},")
            .expect("a string can be written to");
    }
    code.push_str("] }");
    code.parse().expect("Rust")
}
