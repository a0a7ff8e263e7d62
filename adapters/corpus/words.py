"""Closed word classes of English that the rules need; data only."""

_FUNCTION = """
a about above after again against all almost also although always among an and another any are
around as at be because been before behind below between both but by can could despite did do does
during each either else even every everyone few finally first for from had has have he hence her
here hers his how however i if in inside instead into is it its itself last later less like made
many may meanwhile me more most much must my near never next no nobody none nor not nothing now of
off often on once one only or other our out outside over per perhaps please same several shall she
should since so some soon still such than that the their them then there these they this those
though through thus to today together too toward under unless until up upon us use very was we
well were what when where whether which while who whom whose why will with within without would
yes yet you your
"""
_NUMBERS = """
two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand
million
"""
_ABBREVIATED = """
approx co dept dr e.g etc fig i.e inc jr ltd mr mrs ms mt no prof sr st vol vs
"""

FUNCTION_WORDS = frozenset(_FUNCTION.split())
"""Words that begin no name, though a capital may stand on them."""
NUMBER_WORDS = tuple(_NUMBERS.split())
"""Without "one", which is mostly no count."""
ABBREVIATIONS = frozenset(_ABBREVIATED.split())
"""Words whose full stop does not end a sentence."""
