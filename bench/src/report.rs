//! stub
use crate::{bars::Bar, contenders::Contender, plan::Measure, results::Results};
pub(crate) fn page(_: &Results, _: &[Contender], _: &[Measure], _: Option<&[Bar]>) -> Result<String, String> { Ok(String::new()) }
