"""Made-up people for made-up hospitals: every name, street and number is invented.

Towns and streets are those of tales, telephone numbers begin with 000 555, and no list of real
patients was looked at. Names have the umlauts, apostrophes and hyphens that real ones have.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

import numpy as np

from vitrael.core.data.dicom.write import DicomIdentity
from vitrael.core.data.phantoms.orders import Hospital, Kind
from vitrael.core.rng import stream

Sex = Literal["F", "M"]

FIRST_NAMES: Mapping[Sex, tuple[str, ...]] = {
    "F": (
        *("Änne", "Björg", "Célestine", "Dörthe", "Éowyna", "Fränzi", "Gülnara", "Hägar"),
        *("Ilsebill", "Jördis", "Käthe", "Lönneke", "Mélusine", "Nuška", "Ölöf", "Quirina"),
        *("Rosamunde", "Solveig-Maj", "Türkan", "Undine", "Wübke", "Ysolde"),
    ),
    "M": (
        *("Åsmund", "Börries", "Çelebi", "Dagobert", "Ekkehard", "Fürchtegott", "Göran"),
        *("Hänsel", "Ignác", "Jörn-Uwe", "Kasimír", "Lörinc", "Münchhausen", "Nepomuk"),
        *("Ødger", "Philémon", "Rüdeger", "Süleyman", "Tankred", "Wölfli", "Zoltán"),
    ),
}
FAMILY_NAMES = (
    *("Ackerwinde", "Bärenklau", "D'Anémone", "Distelfink", "Eisvögler", "Föhrenwald"),
    *("Gänsefuß", "Hahnenfuß", "Immergrün", "Johanniskräuter", "Königskerzner", "Löwenzähner"),
    *("Mädesüß", "Nachtkärzler", "Øresten", "Pfaffenhütl", "Quittenbäumer", "Rübezähler"),
    *("Schlüsselblüm", "Şimşekli", "Täschelkraut", "Überblüh", "Vergißmeinnicht"),
    *("Wollgräsler", "Ysopsdóttir", "Zaunkönig-Zwölf", "Çiçekdağ"),
)
STREETS = (
    *("Am Märchenbrunnen", "An der Schönen Lau", "Bremer-Stadtmusikanten-Gasse"),
    *("Drosselbartring", "Frau-Holle-Weg", "Gläserner Steig", "Hinter den Sieben Bergen"),
    *("Knüppelausdemsack", "Lebkuchenhäusl", "Rapunzelturm", "Schildbürgerplatz"),
    *("Siebenmeilenstiege", "Tischleindeckdich", "Überm Regenbogen", "Zur Gänsemagd"),
)
TOWNS = ("Niemandsfeld", "Schilda", "Taka-Tuka-Höhe", "Wolkenkuckucksheim", "Zwölfeichen")
HOUSES = ("Klinikum", "Spital", "Hospital", "Krankenhaus")
REMARKS = (
    *("Asks for a window seat", "Is afraid of the noise", "Comes with a neighbor"),
    *("Prefers the early hours", "Wears hearing aids", "Keeps bees"),
)
_PHYSICIANS = ("Wünschelrut^Ottilie", "Fernglas^Balthasar", "Weißdorn^Ägidius", "Hollunder^Rike")
_OPERATORS = ("Schräubchen^Lotte", "Zündholz^Veit", "Märzenbecher^Pál")

_NUMBERS, _FIRST_NUMBER, _STRIDE = 900_000, 100_000, 7919
_FIRST_DAY, _DAYS = date(2012, 1, 2), 3000
_GAP_DAYS: Mapping[Kind, tuple[int, int]] = {
    "brain": (180, 900),
    "echo": (90, 730),
    "muscle": (5, 12),
}
"""Between two visits; wards measure a wasting muscle within days."""
_YEAR_DAYS = 365.25
_SPELLED = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "Ö": "Oe", "Ü": "Ue", "ß": "ss", "Ø": "O", "ø": "o"}
)


@dataclass(frozen=True, slots=True, repr=False)
class Person:
    """One made-up patient, as the hospital's books have him."""

    patient_id: str
    name: str
    """Family name, ``^``, given name."""
    sex: Sex
    birth_date: date
    address: str
    telephone: str
    remark: str

    def __repr__(self) -> str:
        """Show nothing, as for a real patient."""
        return "Person(private)"

    def age_years(self, day: date) -> float:
        """Return the age on a day."""
        return (day - self.birth_date).days / _YEAR_DAYS


def draw_visits(hospital: Hospital, patient: int) -> tuple[date, ...]:
    """Return the days on which a patient comes, in order; no two are the same."""
    rng = stream(hospital.seed, "visits", hospital.kind, hospital.site, patient)
    days = [_FIRST_DAY + timedelta(days=int(rng.integers(_DAYS)))]
    low, high = _GAP_DAYS[hospital.kind]
    for gap in rng.integers(low, high, size=hospital.visits - 1):
        days.append(days[-1] + timedelta(days=int(gap)))
    return tuple(days)


def years_between(first: date, day: date) -> float:
    """Return how many years lie between two days."""
    return (day - first).days / _YEAR_DAYS


def draw_person(
    hospital: Hospital, patient: int, *, sex: Sex, age_years: float, on: date
) -> Person:
    """Return a patient of an age on a day; within a hospital no two have one patient's number."""
    rng = stream(hospital.seed, "person", hospital.kind, hospital.site, patient)
    first = _pick(rng, FIRST_NAMES[sex])
    family = _pick(rng, FAMILY_NAMES)
    street, town = _pick(rng, STREETS), _pick(rng, TOWNS)
    return Person(
        patient_id=patient_number(hospital, patient),
        name=f"{family}^{first}",
        sex=sex,
        birth_date=on - timedelta(days=round(age_years * _YEAR_DAYS)),
        address=f"{street} {int(rng.integers(1, 99))}, {town}",
        telephone=f"000 555 {int(rng.integers(1000, 10_000))}",
        remark=_pick(rng, REMARKS),
    )


def patient_number(hospital: Hospital, patient: int) -> str:
    """Return the hospital's number of a patient, which tells neither order nor count."""
    start = int(stream(hospital.seed, "numbers", hospital.kind, hospital.site).integers(_NUMBERS))
    return f"P{_FIRST_NUMBER + (start + patient * _STRIDE) % _NUMBERS}"


def identify_visit(hospital: Hospital, patient: int, person: Person, *, on: date) -> DicomIdentity:
    """Return what the headers of one visit say of a patient."""
    house = stream(hospital.seed, "house", hospital.kind, hospital.site)
    rng = stream(hospital.seed, "order", hospital.kind, hospital.site, patient, on.isoformat())
    return DicomIdentity(
        patient_id=person.patient_id,
        name=person.name,
        birth_date=person.birth_date,
        sex=person.sex,
        study_date=on,
        address=person.address,
        telephone=person.telephone,
        institution=f"{_pick(house, HOUSES)} {_pick(house, TOWNS)}",
        physician=_pick(rng, _PHYSICIANS),
        operator=_pick(rng, _OPERATORS),
        accession=f"A{int(rng.integers(10**8)):08d}",
        comments=person.remark,
    )


def spell_name(person: Person) -> str:
    """Return the name as a machine without umlauts shows it: ASCII, family name first."""
    text = person.name.replace("^", ", ").translate(_SPELLED)
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]
