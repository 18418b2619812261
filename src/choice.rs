//! Settings that are one of several words: the enum, its words and their order from one list.

macro_rules! choices {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$vmeta])* $variant,)* }

        impl $name {
            /// All values in the order of [`Self::NAMES`].
            pub const ALL: [$name; $crate::choice::choices!(@count $($variant)*)] =
                [$($name::$variant,)*];
            /// Words an operator writes.
            pub const NAMES: [&'static str; $crate::choice::choices!(@count $($variant)*)] =
                [$($word,)*];

            /// Word of this value.
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }
        }

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.pad(self.name())
            }
        }
    };
    (@count) => { 0 };
    (@count $head:ident $($tail:ident)*) => { 1 + $crate::choice::choices!(@count $($tail)*) };
}

pub(crate) use choices;
