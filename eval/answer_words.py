"""The phrases in which answers are given, as patterns over `answer_text.canonical`. English only; all else is left to a judge.

An option's text in a sentence counts only in sentences that these patterns cover completely, so that a negation or a doubt in
words that no list foresees leaves the answer undecided. `DENIAL` and `DOUBT` are for the free places of a pattern,
`UNSURE`, `RETRACTION` and `DISAVOWAL` for the sentences beside an answer.
"""

from __future__ import annotations

import re


def _any(*phrases: str) -> str:
    return "(?:" + "|".join(phrases) + ")"


def _words(*phrases: str) -> re.Pattern[str]:
    return re.compile(r"(?<!\S)" + _any(*phrases) + r"(?!\S)")


LETTER = r"(?:\([A-Z]\)|[A-Z](?!\S))"
END = r"(?: [.!,;:)\]}\"]| \.\.+)*$"
_BE = _any(
    "is", "was", "are", "be", "would be", "should be", "must be", "will be", "has to be", "seems to be", "appears to be"
)
_SURE = _any(
    *("definitely", "certainly", "clearly", "obviously", "surely", "probably", "likely", "most likely", "very likely"),
    "indeed|simply|apparently|evidently|therefore|thus|then|just|exactly|directly|actually",
)
_GOOD = _any(
    *("final", "correct", "right", "best", "overall", "single", "most likely", "most appropriate", "most suitable"),
    *("most accurate", "most plausible", "most probable", "likely", "appropriate", "proper"),
)
_I_AM = rf"i(?:'m| am)(?: {_any('quite', 'fairly', 'pretty', 'very', 'rather', 'almost', 'absolutely')})?"
_OPINION = _any(
    "i (?:would |'d )?(?:think|believe|guess|suppose|conclude|say)|i'd (?:think|say|guess)|in my (?:opinion|view)",
    rf"{_I_AM} {_any('sure', 'certain', 'confident', 'convinced')}",
    *(
        "my (?:best )?guess(?: is|(?= :))",
        "it (?:seems|appears|looks)(?: like)?",
        "(?:we|i|you) (?:can )?(?:see|conclude|find|observe)",
    ),
)
_DISCOURSE = _any(
    "no doubt|without (?:a|any) doubt|beyond (?:a|any) doubt|undoubtedly|there is no doubt that",
    "so|thus|therefore|hence|then|ok|okay|well|overall|finally|accordingly|consequently",
    "in (?:conclusion|summary|short|this case)|to (?:conclude|summarize|summarise|sum up)|as a result|all in all",
    *("it follows", "this means", "sure", "great", "and"),
)
_GROUND = (
    _any(
        "based on|judging (?:from|by)|looking (?:closely )?at|according to|from|in|given|considering",
        *("as (?:seen|shown|visible) in", "after (?:looking at|examining|reviewing|inspecting)"),
    )
    + r"(?: [a-z][a-z'-]*){1,9} ,"
)
OPENERS = re.compile(
    rf"^(?:(?:{_DISCOURSE}|{_OPINION}|{_SURE})(?: ,| :)?(?: that)?|{_GROUND}|[:,.='\"(\[{{∴]|[>-](?! [no][+-]?\.?\d)|->|=>|\.\.+|(?:step|note|colou?r|position|location|direction|distance|side|shape|size|count|number|total|[a-z]|i think|assistant)(?: :| =)) (?=\S)"
)
_LINK = rf"(?: (?:{_BE}|{_SURE}|[:=]|-|->|=>|that|also known as|\.\.+))"
_NOUN = _any("answer", "ans", "option", "choice", "letter", "response", "conclusion", "result", "n1", "solution")
ANSWER = re.compile(
    rf"^(?:here(?:'s| is) )?(?:(?:the|my|our|its|your|a) )?(?:(?:{_GOOD} )+(?:{_NOUN})|letter of the (?:{_GOOD} )*{_NOUN}|answer|ans|final|selected option|selection|(?:response|conclusion|solution|result|choice|prediction|verdict|decision|output)(?= [:=])|(?:choice|pick|prediction|decision)(?= is ))(?: \.(?= \S))?"
    r"(?: choice| option| letter)?(?: (?:to|for) (?:the|this|that|your) (?:(?:given|above|current|original|posed|main|user's|multiple-choice) )?question| here)?"
    rf"(?:{_LINK}|(?= {LETTER}{END})|(?= {LETTER} [.):])|\n)+(?: \n)*(?: (?:option|choice|letter|answer)(?= {LETTER}| [a-z]{END}))?(?: [:-])? (?=\S)"
)
HEADING = re.compile(rf"^(?:(?:the|my) )?(?:{_GOOD} )*(?:answer|choice)$")
"""A line that is the heading of an answer in the next line."""
OPTION = re.compile(
    rf"^(?:the )?(?:{_GOOD} )?(?:option|choice|letter)(?: (?:{_BE}|[:=]|-))? (?=(?:{LETTER}|[a-z](?!\S)))"
)
CHOOSE = re.compile(
    r"^(?:(?:i|we|you)(?:'ll|'d|'m| am| are)? )?(?:(?:will|would|should|must|can|have to|want to|need to) )?"
    r"(?:choose|pick|select|answer|chose|picked|selected|choosing|picking|selecting|going (?:with|for)|go (?:with|for)|went with|"
    r"opt for|vote for|vote|settle on|decide on|say|lean(?:ing)?(?: (?:towards?|to))?)(?: the)?(?: (?:option|choice|answer|letter))?(?: (?:is|:))? (?=\S)"
)
IT_IS = re.compile(
    rf"^(?:(?:it|this|these|they|there|he|she|that)(?:'s|'re| (?:{_BE}|looks|seems|appears))|it'd be)(?: {_SURE})*(?: to be| like)? (?=\S)"
)
VERDICT = re.compile(
    rf"^ (?:is|seems|looks|appears|must be|would be|should be)(?: to be)?(?: {_SURE})*"
    rf"(?:(?: (?:the|my|our))?(?: {_GOOD}| only)*(?: (?:answer|option|choice|response|one|letter))|(?: the)? (?:correct|best|right))"
    rf"(?: here| to (?:the|this) question)?{END}"
)
AFTERTHOUGHT = re.compile(
    rf"^(?: [,-])? {_any('for sure', 'i think', 'i believe', 'final answer', 'it is', 'of course', 'is it', 'please', _SURE)}{END}"
)
CONCLUSION = re.compile(r"^(?:so|therefore|thus|hence|consequently)(?!\S)")
REASON = re.compile(
    r"(?: [,.(:-]| --)? (?:because|since|as(?= (?:the|it|there|they|this|that|we|i|you|shown|seen|its)\b)|given|due to|based on|"
    r"considering|which(?! means \S+(?: [.!])*$)|where|for the (?:following )?reason|given that|seeing)(?= ).*$",
    re.DOTALL,
)
REASON_ALONE = re.compile(r"^(?:because|since|explanation|reason(?:ing)?|justification|rationale|note|why)(?!\S)")
CONTRAST = re.compile(r"^(.+?)(?: ,)?(?: and)? (?:not|rather than|instead of|never|as opposed to) (.+)$", re.DOTALL)

INSTEAD = re.compile(
    r"^(?:(?:it|this|that)(?:'s not| is not| isn't)|not) (.+?)(?: [,;])?(?: (?:so|but|rather|instead)(?: it(?:'s| is))?)+ (.+)$",
    re.DOTALL,
)
""""It isn't A, so B", "not 3 but 4"."""
DEGREE = "slightly|somewhat|directly|immediately|a bit|a little"
OWN_ANSWER = re.compile(
    rf"(?:^|[,.;:] )(?:(?:the|my|our|your|its|a|this|here is|and|so|thus|therefore|hence|multiple choice|model's|short|direct|full|"
    rf"chosen|selected|predicted|only|true|correct|{_GOOD}) )*(?:answer|ans|option|choice|response|pick)$|^[^\w]+$"
)
"""The label of the writer's own answer. "Their answer", "the old answer", "a bad answer" are others'."""
_CONFIDENCE = re.compile(r"(?<!\S)(?:confiden(?:ce|t)|certainty|certain|sure|probability|likelihood|chance|odds)(?!\S)")
_SHARE = re.compile(r"(?<!\S)n([\d.]+)(?: (%|percent))?(?!\S)")


def is_unlikely(text: str) -> bool:
    """Whether a text beside an answer gives it a low confidence, or a bare percentage ("(60 %)", "confidence: 20 %")."""
    if re.fullmatch(rf"[,(:= -]*n[\d.]+ (?:%|percent){END}", text):
        return True
    if not _CONFIDENCE.search(text):
        return False
    if re.search(r"(?<!\S)(?:low|little|no|zero|small|slim|poor)(?!\S)", text):
        return True
    return any(float(value) <= (50 if share or float(value) > 1 else 0.5) for value, share in _SHARE.findall(text))


DENIAL = _words(
    "not|never|neither|nor|no|none|nothing|nobody|nowhere|cannot|without|incorrect|wrong",
    "[a-z]+n't|dont|doesnt|isnt|wasnt|arent|cant|wont|didnt|aint|unlikely|improbable",
    "implausible|impossible|hardly|scarcely|barely|rarely|seldom|except|excluding|exclude[sd]?",
    "rather|instead|than|but|far from|fails?|failed|lacks?|lacking|den(?:y|ies|ied)|reject(?:s|ed)?",
    "rul(?:e|es|ed|ing)|eliminat(?:e|es|ed|ing)|dismiss(?:ed)?|discard(?:ed)?|refus(?:e|es|ed)|avoid(?:s|ed)?",
    "opposite|contrary|reverse|false|untrue|fake|mistake|mistaken|mistakenly|error|erroneous",
    "least|less|unless|outside|anything|non|contradicts?|contradicted|unsupported|invalid|absent",
    "disagree|ignore|excluded|missing|deceptive|trap|distractor|illusion|misleading|misread",
    "surprised?|ridiculous|absurd|nonsense|out of the question|too|✗|✘|❌|✖|☐|×|¬|≠",
)
DOUBT = _words(
    "or|either|both|between|might|may|could|perhaps|maybe|possibly|possible|plausible",
    "if|whether|unless|until|when|while|once|suppose|assume|assuming|imagine|pretend|would",
    "say|says|said|claims?|claimed|think|thinks|thought|believe|believes|believed|argue[sd]?",
    "tell|tells|told|ask|asks|asked|expect|expected|hope|hoped|wish|want|wonder|hint",
    "suggests?|suggested|supposed(?:ly)?|allegedly|guess|guesses|guessed|doubt|doubts|doubtful",
    "unsure|uncertain|unclear|unknown|ambiguous|uncertainty|question|questions|options?|choices?",
    "answers?|alternatives?|candidates?|caption|naive|first|second|initially|formerly|previously",
    "used|before|almost|nearly|partly|partially|sometimes|versus|vs|who|what|why|how",
    "some|many|someone|everyone|anyone|people|others|another|other|same|should|joke|joking",
    *("half", "halfway", "also", "so-called", "alternatively", "otherwise", "depends?", "depending", "mirror(?:ed)?"),
)
UNSURE = re.compile(
    r"(?<!\S)(?:(?:not|[a-z]+n't|cannot|dont|cant|never)(?: (?:be|be able to|really|quite|entirely|so|too|very|exactly|100))? "
    r"(?:sure|certain|know|clear|tell|determined?|determine|say|decided?|decide|confident|enough|convinced)|unsure|uncertain|unclear|"
    r"no (?:idea|clue|way|answer|correct)|hard to (?:say|tell)|impossible to|difficult to (?:say|tell)|ambiguous|undecided|"
    r"insufficient|unanswerable|dunno|idk|who knows|random|coin|guessing|joking|kidding)(?!\S)"
)
RETRACTION = _words(
    "wait|actually|hmm+|sorry|correction|oops|scratch|second thought|mistake|mistaken|misread",
    "changed? my|change that|no ,|on reflection|strike that|let me (?:re.*|check|think|correct)|never mind",
    *("the opposite", "reconsider(?:ing)?", "alternatively", "or rather", "i mean", "disregard"),
    "(?:take|took|taking) (?:that|it|this|my answer|everything) back|take back|a lie|lied|april fools?|fooled you|gotcha|jk|a joke|a prank",
    "want (?:you|me|us) to (?:think|believe|say)|i retract|retracted|i withdraw|forget (?:that|it)|made (?:that|it) up|opposite day|a trick",
    "not really|don't (?:believe|trust) (?:that|it|this|me)|not what i (?:think|believe|mean)",
)
_IT_WAS = r"(?:that|this|it|which|i)(?: (?:is|was|am|may be|might be|could be|seems|looks)|'s)"
DISAVOWAL = _words(
    *(
        rf"{_IT_WAS} {_any('wrong', 'incorrect', 'false', 'mistaken', 'untrue')}",
        "(?:that|this|it) (?:can't be|cannot be)",
    ),
    rf"(?:{_IT_WAS} not|(?:that|this|it) (?:isn't|wasn't))(?: {_any('right', 'correct', 'true', 'it', 'so', 'the answer')})?(?= [.!,]|$)",
)
POSSIBLE = _words(
    "or",
    "also",
    "too",
    "possible",
    "plausible",
    "could",
    "might",
    "may",
    "maybe",
    "perhaps",
    "either",
    "both",
    "equally",
    "alternatively",
    "possibly",
)
SUBJECT = r"(?:[a-z][a-z'-]*(?: [a-z][a-z'-]*){0,11})"
_COPULA = _any(
    "is|are|was|were|rotates?|appears?|seems?|looks?|stands?|sits?|lies|stays?|remains?|hangs?|rests?|faces|moves?|moved|"
    "points?",
    "turns?|turned|goes|went|rotated|located|positioned|placed|facing|heading|moving|shows?",
)
_INTO = _any(
    "to|on|at|in|toward|towards|the n1|the|a|an|its|their|his|her|your|my|further",
    "located|positioned|placed|situated|found|standing|sitting|lying|facing|moving|turning",
    *(DEGREE, "right", "pointing", "heading", "of color", "colored", "painted", "to be", "also known as", _SURE),
)
_NOUN_PHRASE = r"(?: (?:the|a|an|this|that|its|his|her|my|your|their|each))(?: [a-z][a-z'-]*){1,6}|(?: (?:it|them|him|her|me|you|us))(?!\S)"
_SCENE = (
    r"(?: of (?:the|this|that|my|your|its|his|her|our|it|them|me|you)(?: [a-z][a-z'-]*){0,6}| (?:in|from|on) (?:the|this|that|my|your|our)"
    r"(?: [a-z][a-z'-]*){0,3} (?:image|picture|photo|photograph|scene|view|frame|viewpoint|perspective|screen|map|video))"
)
SIDE = _any(
    "side",
    "hand side",
    "hand",
    "n1",
    "direction",
    "object",
    "part",
    "area",
    "region",
    "item",
    "color",
    "colour",
    "in color",
)
PLACED = re.compile(
    rf"^(?:{SUBJECT} {_COPULA}|(?:it|this|that|they|these|there)(?:'s|'re)|i(?: can)? see)?(?: ?{_INTO}(?!\S))*"
    rf" ?@(\d+)(?: {SIDE})?(?P<object>{_NOUN_PHRASE})?(?:{_SCENE})*(?: to me)?{END}"
)
STANDS = re.compile(
    rf"^(?:(?:the|a|an) )?@(\d+)(?: {SIDE})? (?:is|are|was|were|stands?|sits?|lies|appears?|remains?|can be seen)(?: (?:there|here|visible|shown|seen|present|depicted))?(?:{_SCENE})*{END}"
)
_COUNTED = _any(
    "there (?:is|are|were|was)|there's|there're|(?:i|we|you)(?: can)? (?:see|count|find|counted|spot|observe)",
    r"(?:the |a )?(?:total|number|count|sum)(?: (?:number|count))?(?: of(?: [a-z'-]+){1,6})?(?: (?:is|are|=|:|equals))+",
    *(
        "(?:it|they|this|that)(?:'s|'re| is| are| has| have)",
        rf"{SUBJECT} (?:is|are|has|have|shows?|contains?|equals?|measures?|holds?)",
    ),
    "of course",
)
NUMBER_ENDS = _words(
    "i|guess|is|was|has|does|this|his|its|as|us|always|yes|thus|across|towards|else|besides|whereas|afterwards",
    "of|others?|another|additional|extra|more|fewer|less|least|most|times|out|or|and|to|percent|hundreds?|"
    "thousands?|millions?",
    "billions?|dozens?|pairs?|half|halves|quarters?|thirds?|point|plus|minus|squared|cubed|per",
    "by|x|than|minimum|maximum|tops|max|min|ish|over|under|below|above|up|upwards|short",
    "nearly|almost|about|approximately|roughly|around|perhaps|maybe|possible|excluding|except|but",
    "if|when|unless|not|no|apart|missing|fold|tenths|hundredths|d|o'clock|if|where",
)
PLURAL = re.compile(
    r"^(?:.* )?(?:[a-z'-]+s|people|persons?|children|men|women|sheep|fish|feet|teeth|mice|geese|deer|cattle|aircraft|m|cm|mm|km|ft|kg)"
    r"(?:(?: (?:is|are|was|were|can be))? (?:visible|seen|depicted|counted|total|altogether|overall|shown|present|there|here))?$|^(?: (?:visible|total|altogether|overall|shown|present))?$"
)
"""What is counted: nothing, or a plural; "10 left" and "10 each" are no counts."""
COUNT = re.compile(
    rf"^(?:{_COUNTED}(?= ))?(?:(?:^| )(?:exactly|only|just|a total of|precisely|in total|clearly|visible|ABOUT))*(?:^| )@(\d+)(?P<nouns>(?: (?!(?:in|on|at|from)(?!\S))[a-z][a-z'-]*){{0,4}})"
    rf"(?: (?:in|on|at|from)(?: (?:the|this|that|front|total|all|each|view|sight|your|my))(?: [a-z][a-z'-]*){{0,5}})?{END}"
)
ABOUT = "about|approximately|around|roughly|circa"
OF_OTHERS = re.compile(
    r"(?<= [.!\n]) (?:the|all|all the) (?:others?|other (?:options?|choices?|answers?|ones))(?: (?:is|are|do|does|can|seem|look))?(?: all| clearly)?"
    rf" (?:wrong|incorrect|false|not (?:correct|right|match|fit|apply)|be (?:ruled out|excluded|eliminated)){END}"
)
"""A last sentence that only confirms: "The others are wrong."."""
YES_NO = {"yes": "yes", "yeah": "yes", "yep": "yes", "yup": "yes", "no": "no", "nope": "no"}
OPENING = re.compile(
    rf"^({'|'.join(YES_NO)})(?: [,!;:-]| \.(?! [no]\d))?(?:$|(?: \n)+| (?=(?:it|there|they|he|she|this|that|these|those|we|you|i|the|because|since|as)(?:'s|'re)?(?!\S))|(?<=[,.!;:-]) )"
)
CONFIRMS = re.compile(
    r"^(?:(?:of course|indeed|certainly|clearly|surely|obviously|sure|definitely|absolutely|in fact|,) )*(?:it|there|they|he|she|this|that|these|those|we|you|i)(?:'s| is| are| does| do| did| was| were| can| has| have| will| would)"
    r"(?: (?:it|there|one|so|indeed|correct|right|true|the case))*(?: [.!,])*$"
)
NEGATED = _words("no", "not", "never", "none", "nothing", "cannot", "[a-z]+n't")
LIMITED = re.compile(r"^(?:but|and|or|partly|partially|only|maybe|perhaps|probably|almost|mostly)(?!\S)")
NEVER_AFTER_ARTICLE = frozenset(
    {
        *(
            "above",
            "below",
            "yes",
            "no",
            "true",
            "false",
            "behind",
            "under",
            "over",
            "inside",
            "outside",
            "near",
            "on",
            "in",
        ),
        *(
            "up",
            "down",
            "beside",
            "between",
            "the",
            "neither",
            "both",
            "none",
            "all",
            "only",
            "to",
            "at",
            "it",
            "clockwise",
        ),
        *(
            "counterclockwise",
            "away",
            "towards",
            "toward",
            "same",
            "forwards",
            "backwards",
            "for",
            "from",
            "with",
            "by",
            "of",
        ),
        *(
            "and",
            "or",
            "but",
            "because",
            "since",
            "as",
            "so",
            "then",
            "if",
            "while",
            "when",
            "where",
            "whereas",
            "meaning",
        ),
        *(
            "is",
            "was",
            "are",
            "would",
            "could",
            "can",
            "may",
            "might",
            "seems",
            "looks",
            "this",
            "that",
            "there",
            "they",
        ),
        *("he", "she", "we", "you", "not", "i", "namely", "rather", "instead", "due", "given", "also", "too"),
    }
)
ADJECTIVES = frozenset(
    {
        *(
            "left",
            "right",
            "front",
            "north",
            "south",
            "east",
            "west",
            "far",
            "closer",
            "farther",
            "further",
            "larger",
            "smaller",
        ),
        *(
            "higher",
            "lower",
            "taller",
            "shorter",
            "forward",
            "backward",
            "red",
            "green",
            "blue",
            "yellow",
            "black",
            "white",
        ),
        *("gray", "grey", "brown", "pink", "purple", "orange", "big", "small", "large", "open", "closed", "wet", "dry"),
    }
)
"""Words that no noun is: after them a text must go on for a capital "A" to be an article."""
