//! x
pub fn escape(s:&str)->std::borrow::Cow<'_,str>{s.into()}
