"""Subjects and templates of the demo's prompts, and how they are split.

A subject belongs to exactly one split, so no prompt of the policy's training is near-copied in a test.
"""

from __future__ import annotations

import hashlib
from typing import Literal

Split = Literal["train", "validation", "test"]

TEMPLATES = ("Write one sentence about {}.", "Describe {} in one sentence.")

SUBJECTS = tuple(
    subject.strip()
    for line in """
    the sea; a desert; the moon; a thunderstorm; a river in spring; the night sky; a volcano; autumn leaves; a glacier
    a rainforest; the first snow; a drought; a sunrise over mountains; fog in a valley; an island; a waterfall; the wind
    a meadow; an old oak tree; a flooded village; a rainbow; an earthquake; a coral reef; a swamp; the horizon; tides
    my dog; a stray cat; a lion; an owl; a spider; honeybees; a whale; a wolf pack; a snake; pigeons; a horse; an ant hill
    a caged bird; a fox at night; a tortoise; sharks; a butterfly; mosquitoes; an elephant; a crow; a puppy; rats; a donkey
    taxes; a job interview; a long meeting; a deadline; an office; unemployment; a promotion; a factory; a strike; a budget
    an invoice; a new boss; a spreadsheet; a business trip; a startup; a pension; overtime; a farewell party; a contract
    a bakery; a debt collector; a customer complaint; a night shift; a warehouse; a bank; inflation; an auction; a merger
    war; a peace treaty; an election; a protest; a border; a refugee camp; a parliament; a prison; a court trial; the police
    a revolution; a dictator; a census; a passport; a curfew; a monument; a village mayor; propaganda; a jury; a soldier
    breakfast; a cup of coffee; burnt toast; a birthday cake; spicy soup; a vegetable garden; an empty fridge; street food
    a lemon; chocolate; stale bread; a family dinner; a food market; hunger; a recipe book; cheese; a picnic; spoiled milk
    a barbecue; green tea; a coconut; rice; a honey jar; an onion; a restaurant bill; a kitchen knife; soup for the sick
    a hospital; a dentist; a broken leg; a newborn baby; the flu; an ambulance; a nurse; insomnia; a vaccine; a headache
    old age; a wheelchair; a marathon; yoga; a scar; a doctor's advice; an allergy; a funeral; memory loss; a heartbeat
    a blood test; physical therapy; a fever; a healthy habit; a pharmacy; surgery; a hearing aid; a diet; stress; sleep
    a school exam; a library; homework; a strict teacher; a graduation; a lost book; mathematics; a spelling bee; a bully
    a science fair; a poem; a history lesson; a classroom; a chess club; a school bus; an essay; kindergarten; a dictionary
    a laptop; a cracked phone screen; the internet; a robot; a password; a video game; spam email; a satellite; a printer
    a search engine; a computer virus; an old radio; a camera; electric cars; a power outage; a drone; a microscope; a clock
    a telescope; a slow download; solar panels; a bug in the code; a calculator; a lighthouse; a submarine; a wind turbine
    a train station; a traffic jam; a bicycle; a missed flight; a bus driver; a road trip; a ferry; a map; a taxi; a bridge
    a parking ticket; a tunnel; a car accident; a suitcase; a motorcycle; a passenger; a flat tyre; an airport; a harbour
    a wedding; a first date; a broken promise; an old friend; loneliness; a neighbour; a love letter; a divorce; siblings
    a grandmother; an argument; a secret; forgiveness; jealousy; a reunion; a stranger's kindness; a lie; trust; a family photo
    a birthday party; homesickness; a pen pal; a stepfather; gossip; an apology; a childhood home; an orphan; twins; envy
    a football match; a lost game; a gold medal; a referee; swimming lessons; a mountain climb; a chess tournament; boxing
    a dance class; a tennis racket; a coach; an injury; ice skating; a sailing boat; fishing; a skateboard; a marathon runner
    a symphony; a street musician; a painting; a bad film; a novel; theatre; a broken violin; a museum; graffiti; a sculpture
    jazz; a film critic; a choir; a photograph; a comic book; an empty stage; a circus; a folk song; a piano lesson; ballet
    a leaking roof; a new apartment; a moving day; a garden fence; a fireplace; a messy room; a lost key; a basement; a mirror
    a rented flat; a noisy street; a staircase; a wooden chair; an attic; a doorbell; a carpet; a candle; a light bulb; dust
    a landfill; plastic waste; an oil spill; a national park; recycling; climate change; clean water; a forest fire; air pollution
    a nuclear plant; an endangered species; a bird sanctuary; organic farming; deforestation; a compost heap; melting ice; noise
    time; silence; courage; fear; luck; boredom; freedom; regret; hope; a mistake; failure; success; patience; anger; justice
    a dream; a nightmare; curiosity; poverty; wealth; pride; a new beginning; doubt; nostalgia; wisdom; greed; laughter; grief
    a thief; a detective; a ghost story; a haunted house; an alibi; a kidnapping; a heist; a forged painting; a missing child
    a pirate; a dragon; a castle; a medieval knight; an ancient tomb; a shipwreck; the Roman army; a gladiator; a plague; a king
    a village festival; New Year's Eve; a harvest; a parade; a religious ritual; a holiday abroad; a quiet Sunday; Mondays
    a farmer; a carpenter; a pilot; a lawyer; a firefighter; a janitor; a politician; a chef; a tailor; a beggar; a miner
    a shepherd; an astronaut; a librarian; a plumber; a judge; a clown; a spy; a sailor; an accountant; a gardener; a hermit
    """.strip().splitlines()
    for subject in line.split(";")
)


def split_of(subject: str) -> Split:
    """Which split a subject belongs to: 70% train, 14% validation, 16% test, by a hash of its name."""
    bucket = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:4], "big") % 100
    if bucket < 70:
        return "train"
    return "validation" if bucket < 84 else "test"


def prompts(split: Split) -> dict[str, str]:
    """All prompts of a split with their subjects, in the fixed order of the list above."""
    return {template.format(s): s for s in SUBJECTS if split_of(s) == split for template in TEMPLATES}
