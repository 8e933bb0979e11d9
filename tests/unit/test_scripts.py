"""Error rates in many languages and scripts: what is one text in two spellings, and what is not."""

from __future__ import annotations

import unicodedata

import jiwer
import pytest
from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from audio_ops.speech.normal import is_unspaced, letters, plain
from audio_ops.speech.wer import WordErrors


@pytest.fixture(scope="module")
def compare() -> WordErrors:
    return WordErrors()


LANGUAGES = [  # code, reference, the same in another spelling, another text
    ("en", "The colour’s “grey”, isn’t it?", "the color is gray is not it", "the color is grey"),
    ("de", "Die Straße ist schön!", "DIE STRASSE IST SCHÖN", "die straße ist schon"),
    ("fr", "L’été, c’est à Orléans.", "l'été c'est à orléans", "l'ete c'est à orléans"),
    ("es", "¿Cuántos años tenéis?", "cuántos años tenéis", "cuántos anos tenéis"),
    ("it", "Perché no? È così.", "perche\u0301 no e\u0300 cosi\u0300", "perche no è così"),
    ("pt", "A avó não está.", "a avó não está", "a avô não está"),
    ("ro", "ţara şi viaţa", "Țara și viața", "tara si viata"),
    ("pl", "Łódź, żółw", "łódź żółw", "lódź żółw"),
    ("lt", "\u012e\u0307ėjimas, i\u0307\u0301 rytą", "įėjimas í rytą", "iėjimas i ryta"),
    ("el", "ΟΔΟΣ, ὁδὸς", "οδος ὁδὸς", "οδός ὁδὸς"),
    ("ru", "За\u0301мок на горе.", "замок на горе", "замок на гора"),
    ("uk", "М’ята і п’ять", "мʼята і п'ять", "мята і пять"),
    ("bg", "ѝ каза, че ща\u0301", "Ѝ каза че ща", "и каза че ща"),
    ("hy", "Ես և դու։", "ես եւ դու", "ես և նա"),
    ("ka", "გამარჯობა, მეგობარო!", "გამარჯობა მეგობარო", "გამარჯობა მეგობარი"),
    ("tr", "İyi akşamlar, IŞIK", "iyi akşamlar ışık", "iyi aksamlar işik"),
    ("az", "İlk İşıq, QIZIL", "ilk işıq qızıl", "ilk işıq qizil"),
    ("uz", "Oʻzbek soʻzi", "O'zbek so‘zi", "ozbek sozi"),
    ("vi", "Tiếng Việt", unicodedata.normalize("NFD", "tiếng việt"), "tieng viêt"),
    ("yo", "Ọjọ́ dára", "ọjo\u0323\u0301 dára", "ọjọ dára"),
    ("ar", "السَّلَامُ عَلَيْكُمْ، ١٢", "السلام عليكــم 12", "السلام عليك 12"),
    ("fa", "می‌خواهم کتاب ي", "می خواهم كتاب ی", "می خواهم کتان ی"),
    ("ur", "یہ کتاب ہے۔", "یہ كتاب ہے", "یہ کتب ہے"),
    ("he", "שָׁלוֹם עוֹלָם", "שלום עולם", "שלום עולה"),
    ("hi", "पानी की बोतल, १२", "पानी की बोतल 12", "पानी को बोतल 12"),
    ("ne", "राम को घर।", "राम को घर", "राम का घर"),
    ("mr", "मी क़लम", "मी क\u093cलम", "मी कलम"),
    ("bn", "তার মা কোথায়?", "তার মা কোথায\u09bc", "তারে মা কোথায়"),
    ("pa", "ਮੇਰੀ ਕਿਤਾਬ।", "ਮੇਰੀ ਕਿਤਾਬ", "ਮੇਰਾ ਕਿਤਾਬ"),
    ("gu", "મારી ચોપડી.", "મારી ચોપડી", "મારો ચોપડી"),
    ("ta", "தமிழ் மொழி!", "தமிழ் மொழி", "தமிழ மொழி"),
    ("te", "తెలుగు భాష.", "తెలుగు భాష", "తెలుగు భాషా"),
    ("kn", "ಕನ್ನಡ ನುಡಿ.", "ಕನ್ನಡ ನುಡಿ", "ಕನ್ನಡ ನಡಿ"),
    ("ml", "അവൻ വന്നു", "അവന്\u200d വന്നു", "അവള് വന്നു"),
    ("si", "මගේ පොත", "මගේ පොත.", "මගෙ පොත"),
    (
        "ko",
        "안녕하세요, 여러분!",
        unicodedata.normalize("NFD", "안녕하세요 여러분"),
        "안녕하세요 여러부",
    ),
    ("am", "ሰላም፣ ዓለም።", "ሰላም ዓለም", "ሰላም አለም"),
    ("dv", "ދިވެހި ބަސް", "ދިވެހި ބަސް.", "ދިވެހި ބުސް"),
    ("zh", "你好，世界！１２", "你好 世界12", "你好 时界12"),
    ("yue", "我哋去飲茶。", "我哋去 飲茶", "我哋去飲水"),
    ("ja", "コーヒーを、飲む。", "ｺｰﾋｰを飲む", "コーヒを飲む"),
    ("th", "น้ำ ม้า มา", "นํ้าม้ามา", "น้ำ มา มา"),
    ("lo", "ສະບາຍ ດີ", "ສະບາຍດີ", "ສະບາຍດິ"),
    ("km", "សួស្តី ពិភពលោក។", "សួស្តី\u200bពិភពលោក", "សួស្តា ពិភពលោក"),
    ("my", "မြန်မာ စာ။", "မြန်မာစာ", "မြန်မာ စ"),
    ("bo", "བཀྲ་ཤིས་བདེ་ལེགས།", "བཀྲ་ཤིས་བདེ་ལེགས", "བཀྲ་ཤིས་བདེ་ལགས"),
]


@pytest.mark.parametrize(
    ("language", "reference", "same", "other"), LANGUAGES, ids=[row[0] for row in LANGUAGES]
)
def test_spelling_is_no_error_and_another_letter_is_one(
    compare: WordErrors, language: str, reference: str, same: str, other: str
) -> None:
    for code in (
        (language, None) if language not in ("en", "tr", "az", "ro", "fa", "ur") else [language]
    ):
        found = compare(reference, same, code)
        assert found["wer"] == found["cer"] == 0, plain(reference, language)
        wrong = compare(reference, other, code)
        assert wrong["wer"] > 0 < wrong["cer"]


UNSPACED = {"zh", "yue", "ja", "th", "lo", "km", "my", "bo"}


@pytest.mark.parametrize(
    ("language", "reference"), [row[:2] for row in LANGUAGES], ids=[row[0] for row in LANGUAGES]
)
def test_characters_count_where_words_are_not_spaced(
    compare: WordErrors, language: str, reference: str
) -> None:
    for code in (language, None, "en"):  # of a code that is unknown or wrong the script decides
        by = compare(reference, "", code)["compared_by"]
        assert by == ("characters" if language in UNSPACED else "words")


@pytest.mark.parametrize("language", ["zh", "th", "my", "bo"])
def test_spaces_do_not_count_where_words_are_not_spaced(compare: WordErrors, language: str) -> None:
    """Nor do they thin out the rate: jiwer's own, of the letters alone."""
    _, reference, _, other = next(row for row in LANGUAGES if row[0] == language)
    true, said = ("".join(plain(text, language).split()) for text in (reference, other))
    found = compare(reference, other, language)
    assert found["cer"] == pytest.approx(jiwer.cer(true, said))
    assert found["edits"]["characters"] == len(true)
    assert found["edits"]["words"] == len(letters(true))


def test_a_text_in_two_scripts_goes_by_its_language() -> None:
    assert is_unspaced("我用 windows", "zh") and not is_unspaced("我用 windows", "en")
    assert is_unspaced("我用电脑 ok", "en") and not is_unspaced("hello there", "zh")
    assert is_unspaced("12", "zh") and not is_unspaced("12", "")


@pytest.mark.parametrize("text", ["السَّلَامُ عَلَيْكُمْ وَرَحْمَةُ اللَّهِ", "بِسْمِ ٱللَّهِ ٱلرَّحْمَٰنِ", "בְּרֵאשִׁית בָּרָא אֱלֹהִים"])
def test_vowel_points_are_no_edits(compare: WordErrors, text: str) -> None:
    bare = "".join(c for c in text.replace("ٱ", "ا") if not unicodedata.combining(c))
    for code in ("ar", "he", None):
        assert compare(text, bare, code)["wer"] == compare(bare, text, code)["wer"] == 0


@pytest.mark.parametrize(
    ("language", "reference", "text", "edits"),
    [
        ("ru", "Ещё раз: всё хорошо.", "еще раз все хорошо", 0),
        ("rus", "ЁЛКА", "елка", 0),
        ("be", "ёсць", "есць", 1),  # a letter of its own there
        ("sr", "Љубав и џеп: добар дан!", "Ljubav i džep dobar dan", 0),
        ("bs", "ЊЕГОВ ћук", "njegov ćuk", 0),
        ("Serbian", "кућа", "kuća", 0),
        ("sr", "кућа", "kuca", 1),
        ("ru", "дан", "dan", 1),
        ("vi", "hoà bình, thuỷ, khoẻ, QUÝ", "hòa bình thủy khỏe quý", 0),
        ("vi", "hoàn toàn", "hoàn toán", 1),
        ("vi", "hoà", "hoá", 1),
        ("bn", "উৎসব", "উত্\u200dসব", 0),
        ("zh", "漢字簡體，頭髮發展。", "汉字简体头发发展", 0),
        ("zh-TW", "汉字", "漢字", 0),
        ("yue", "我哋去飲茶", "我哋去饮茶", 0),
        ("Chinese", "台灣", "臺湾", 0),
        ("zh", "漢字簡體", "汉字繁体", 1),
        ("ja", "漢字", "汉字", 1),
        ("el", "η οδός", "η οδος", 1),  # the tonos is no option
    ],
)
def test_what_a_writer_may_choose_is_no_error_and_all_else_is(
    compare: WordErrors, language: str, reference: str, text: str, edits: int
) -> None:
    for pair in ((reference, text), (text, reference)):
        assert compare(*pair, language)["edits"]["word_edits"] == edits


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("❤️ you", "you"),
        ("1️⃣ two", "1 two"),
        ("so\u00adftly \ufeffnow", "softly now"),
        ("a\u200bb", "a b"),
        ("wait… what", "wait what"),
        ("wait...", "wait"),
        ("I paid... £.", "I paid"),
        ("...", "?!"),
        ("can`t won´t don＇t", "can't won't don't"),
        ("the organisation’s programme", "the organization's program"),
        ("（laughs） hello", "hello"),
    ],
)
def test_signs_that_nobody_speaks_are_no_errors(
    compare: WordErrors, reference: str, text: str
) -> None:
    assert compare(reference, text, "en")["wer"] == 0


@pytest.mark.parametrize("name", ["Turkish", "tur", "tr-TR", "TR_tr"])
def test_a_language_goes_by_its_codes_and_its_name(compare: WordErrors, name: str) -> None:
    assert compare("IŞIK", "ışık", name)["wer"] == 0


def test_a_language_that_was_misheard_does_not_empty_the_letters(compare: WordErrors) -> None:
    """Whisper's English normaliser drops the vowels of Hindi."""
    assert compare("पानी की बोतल", "पाना का बोतल", "en")["edits"]["word_edits"] == 2


PROSE = {
    "de": ("Ohne Gräben, sagte er (leise), käme man nie über 3,5 Meter.", "ohne graben sagte er"),
    "fr": ("Aujourd’hui, l’œuvre coûte 20 € !", "aujourd'hui l'oeuvre coûte 20"),
    "es": ("—¿Qué? ¡El niño pingüino!", "que el niño pingüino"),
    "pl": ("Zażółć gęślą jaźń.", "zażółć gęślą jazn"),
    "ru": ("Ещё раз: всё хорошо.", "ещё раз всё плохо"),
    "nl": ("'s Avonds eet-ie twee ei's.", "'s avonds eet ie twee eis"),
    "ko": ("밥을 먹었어요? 네!", "밥을 먹었어요 예"),
}


@pytest.mark.parametrize("language", PROSE)
def test_where_letters_have_no_loose_marks_rates_are_those_of_the_open_asr_leaderboard(
    compare: WordErrors, language: str
) -> None:
    """It has Whisper's basic normaliser and jiwer."""
    basic = BasicTextNormalizer()
    reference, text = (" ".join(basic(text).split()) for text in PROSE[language])
    found = compare(*PROSE[language], language)
    assert found["wer"] == pytest.approx(jiwer.wer(reference, text)) and found["wer"] > 0
    assert found["cer"] == pytest.approx(jiwer.cer(reference, text))


@pytest.mark.parametrize("reference", ['["a", "b"]', '[["a"]]', '{"text": "a"}', ' ["a"]'])
def test_a_reference_that_is_no_text_is_refused(compare: WordErrors, reference: str) -> None:
    with pytest.raises(ValueError, match="expected a text, found JSON"):
        compare(reference, "a", "en")


@pytest.mark.parametrize("reference", ["[noise]", "[1]", "[", "{", "[laughs] yes"])
def test_brackets_make_no_json_of_a_text(compare: WordErrors, reference: str) -> None:
    assert compare(reference, "yes", "en")["wer"] >= 0


@pytest.mark.parametrize(
    "sign", ["[", "(", "<", " ", "'", "\u0301", "\u200d", "$", "1,", "a", "i\u0307"]
)
def test_a_long_run_of_one_sign_is_compared_at_once(compare: WordErrors, sign: str) -> None:
    """Not in the square of its length, which would be hours."""
    for language in ("en", "hi", "th"):
        assert compare(sign * 20_000, "you and me", language)["edits"]["word_edits"] >= 0
