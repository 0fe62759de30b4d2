"""What people ask a chat assistant day by day: templates over word lists, 14 million questions."""

import random
import string

from dlm.data.stateless import hash_text


def _words(line: str) -> tuple[str, tuple[str, ...]]:
  name, _, words = line.partition(": ")
  return name, tuple(words.split(" | "))


# A slot of the templates, and what may stand there. A line that begins with blanks goes on.
_TABLE = """\
animals: cats | dogs | horses | owls | dolphins | bees | octopuses | penguins | elephants | foxes
  | wolves | tortoises | parrots | bats | ants | sharks | frogs | squirrels | eagles | camels |
  hedgehogs | crows | salmon | spiders | whales | rabbits | snakes | otters | goats | beavers
food: rice | lentils | potatoes | an omelette | tomato soup | pancakes | a green salad | bread |
  chicken curry | tofu | vegetable stew | pasta with garlic | fried noodles | banana bread |
  mashed potatoes | hummus | porridge | roast carrots | an apple pie | a mushroom risotto | fish
  tacos | a bean chili | a cheese sandwich | scrambled eggs | onion soup | a lemon cake | baked
  salmon | stuffed peppers
ingredient: butter | eggs | flour | garlic | onions | cream | sugar | honey | lemon juice | yeast
  | soy sauce | milk | cheese | olive oil | vinegar | basil | ginger | chickpeas | spinach |
  cinnamon | tomatoes | mushrooms
place: Paris | Tokyo | Rome | Cairo | Lisbon | Istanbul | Mexico City | Sydney | Vienna | Berlin |
  Bangkok | Nairobi | Oslo | Prague | Athens | Seoul | Lima | Dublin | Toronto | Marrakesh |
  Edinburgh | Hanoi | Copenhagen | Buenos Aires | Barcelona | Amsterdam | Singapore | Reykjavik |
  Warsaw | Chicago
country: France | Japan | Brazil | Kenya | Canada | India | Norway | Egypt | Mexico | Italy |
  Vietnam | Spain | Poland | Peru | Australia | Turkey | Morocco | Greece | Thailand | Ireland |
  Chile | Sweden | Portugal | South Korea | Nigeria | Austria | New Zealand | Argentina |
  Indonesia | Finland
science: photosynthesis | gravity | evolution | electricity | magnetism | the water cycle | plate
  tectonics | friction | black holes | DNA | vaccines | the greenhouse effect | sound waves |
  osmosis | digestion | erosion | tides | the immune system | nuclear fusion | chemical bonds |
  volcanoes | rainbows | antibiotics | eclipses | batteries | the food chain | inertia |
  earthquakes | metabolism | lightning | the ozone layer | fermentation | refraction | cell
  division | the speed of light | hurricanes | superconductors | radioactivity
technology: the internet | a search engine | a touch screen | GPS | a 3D printer | a microwave
  oven | a heat pump | encryption | a neural network | a solar panel | a refrigerator | a barcode
  | a wind turbine | a database | a digital camera | an elevator | a jet engine | noise cancelling
  | a spell checker | a compass | a radio | a bicycle gear | a thermostat | an electric car | a
  zipper | a lock and key | a telescope | a dishwasher
history: the French Revolution | the Roman Empire | the Silk Road | the Industrial Revolution |
  the Renaissance | the moon landing | the Cold War | the printing press | the Black Death | the
  Great Depression | the Ottoman Empire | ancient Egypt | the Viking Age | the fall of the Berlin
  Wall | the Bronze Age | the Suez Canal | the Olympic Games | the Magna Carta | the Great Wall of
  China | the Inca Empire | the invention of writing | the age of exploration | the abolition of
  slavery | the space race
idea: democracy | inflation | supply and demand | compound interest | opportunity cost | freedom
  of speech | the placebo effect | confirmation bias | a metaphor | irony | probability | an
  average | a budget | insurance | a recession | copyright | peer review | natural selection | a
  hypothesis | the scientific method | a monopoly | taxes | globalization | empathy | critical
  thinking | biodiversity | renewable energy | stoicism | a mortgage | recursion | an algorithm |
  open source software | a loop in programming | cloud computing
skill: cooking | public speaking | time management | drawing | swimming | touch typing | learning
  a language | chess | playing the guitar | photography | gardening | negotiation | running |
  writing essays | budgeting | programming | knitting | first aid | meditation | mental arithmetic
  | juggling | singing | woodworking | taking notes | active listening | reading faster |
  remembering names | studying for exams | cycling
goal: sleep better | save money | drink more water | read more books | be less stressed | learn to
  code | wake up earlier | eat more vegetables | stop procrastinating | make new friends | prepare
  for a job interview | waste less food | use my phone less | get fitter at home | write a diary |
  focus at work | keep my house tidy | remember birthdays | grow herbs on a balcony | plan a small
  wedding | learn Spanish | run five kilometres | be on time | give better presents | speak in
  public without fear
problem: my bread does not rise | my houseplant has yellow leaves | my laptop is very slow | my
  cat scratches the sofa | I cannot fall asleep | my bike chain keeps falling off | my neighbours
  are loud | my phone battery drains quickly | my soup is too salty | my Wi-Fi keeps dropping out
  | I forget what I read | my shirt has a coffee stain | my door squeaks | I get nervous before
  exams | my tomatoes do not ripen | my back hurts after sitting | my printer does not print | I
  spend too much money on lunch | my windows are foggy | my kitchen drain is slow | my dog barks
  at visitors | my eyes are tired from screens | my rice is always sticky | I lose my keys all the
  time
event: a birthday party | a school play | a wedding | a team meeting | a farewell party | a picnic
  | a book club | a garage sale | a charity run | a family reunion | a science fair | a
  housewarming | a job fair | a concert | a chess tournament | a museum visit | a cooking class |
  a camping trip | a graduation | a movie night
person: my manager | my teacher | a new neighbour | my landlord | a customer | my grandmother | an
  old friend | a colleague | my sister | the library | a hotel | my doctor | the city council | my
  football coach | a possible employer | my flatmate | a travel agency | the school | an online
  shop | my cousin
request: ask for a day off | say thank you for help | apologise for being late | invite them to
  dinner | cancel an appointment | ask for a refund | complain about noise | recommend a book |
  ask for advice | share good news | move a meeting to Friday | ask about opening hours | decline
  an invitation | congratulate them on a new job | ask to borrow a ladder | remind them of a
  payment | say that I am moving away | ask for a reference letter | offer help with moving |
  report a broken lamp
object: a paper clip | an old newspaper | a glass jar | a cardboard box | a wooden spoon | a brick
  | a shoelace | a bucket | a broken umbrella | an empty bottle | a candle | a towel | a coin | a
  rubber band | a teapot | a ladder | a mirror | a blanket | a bicycle | a lamp | a key | a
  suitcase | a map | a violin | a clock
theme: autumn | the sea | a lost letter | friendship | a rainy Monday | the first snow | an old
  lighthouse | courage | a train at night | homesickness | a garden | the moon | a small robot |
  patience | a forest path | morning coffee | a secret door | a long journey | silence | a paper
  boat | two stubborn goats | a quiet library | a lonely dragon | a market in the desert | the
  last day of school | a talking clock | starlight
hero: a shy inventor | a curious girl | an old fisherman | a brave mouse | a baker | a young
  astronaut | a detective | a forgetful wizard | a bus driver | a lazy knight | a gardener | a
  clever thief | a lost tourist | a librarian | a retired sailor | a small robot | a nervous actor
  | a beekeeper | a street musician | a night nurse
word: happy | big | difficult | quickly | beautiful | begin | important | tired | angry | brave |
  calm | strange | honest | gentle | stubborn | ancient | fragile | generous | clever | ordinary |
  reluctant | vivid | obvious | frugal | eager | humble | abundant | scarce | sincere | clumsy |
  witty | vague | bold | cautious | noisy | bright | rough | polite | curious
language: Spanish | French | German | Italian | Portuguese | Dutch | Swedish | Latin | Polish |
  Indonesian
phrase: good morning | thank you very much | where is the station? | I would like some water | how
  are you? | see you tomorrow | excuse me | what time is it? | I do not understand | nice to meet
  you | the bill, please | I am lost | have a good trip | I am hungry | can you help me? | the
  weather is nice | my name is Anna | happy birthday | good night | how much is this? | I am
  learning slowly | please sit down
sentence: she go to school every day | me and him was late | the datas is wrong | he dont like
  apples | their going to the park | i has two brother | we was happy to saw you | the childs
  plays outside | it are raining today | she is more taller than me | I seen that movie yesterday
  | he can sings very good | this books is mine | there is many people here | I am agree with you
  | he have went home | where you are going | they doesn't know the answer | the informations was
  useful | her is my best friend
statement: The meeting has been moved to Thursday because the room is being painted. | We regret
  to inform you that your order will arrive later than planned. | The old bridge was closed after
  the storm, so everyone takes the ferry now. | Although it was expensive, the new heater saves a
  lot of energy. | Nobody noticed the small mistake until the report had been printed. | The
  museum is free on Sundays but closed on Mondays. | He bought a bicycle because the bus was
  always full. | After a long debate the village decided to keep its school. | The recipe needs
  more time than it says on the box. | If the weather stays dry, the harvest will begin next week.
  | The scientist repeated the experiment three times to be sure. | Our train was late, yet we
  caught the last boat. | The library lends tools as well as books. | She promised to call, but
  her phone had no battery left. | Plants on the windowsill grow toward the light. | The shop
  gives a discount to students and retired people.
list: mammals | programming languages | musical instruments | European capitals | board games |
  root vegetables | planets | famous painters | kinds of clouds | spices | winter sports | metals
  | dances | breakfast dishes | punctuation marks | kitchen tools | units of length | tree species
  | chemical elements | types of bridges | computer parts | bones of the body | river names |
  currencies | card games | fabrics | oceans | fruits
name: Ada | Ben | Chen | Dora | Elif | Farid | Gita | Hugo | Ines | Jamal | Kira | Liam | Mina |
  Noor | Omar | Priya | Quinn | Rosa | Sven | Tara | Uma | Viktor | Wanda | Yuki | Zoe
thing: apples | marbles | books | stickers | eggs | coins | pencils | tickets | cookies | stamps |
  shells | chairs | oranges | postcards | bricks | candles | balloons | buttons | plates | roses
job: a nurse | a software engineer | a carpenter | a teacher | a journalist | a pilot | a chef |
  an accountant | a judge | an architect | a farmer | an electrician | a translator | a
  firefighter | a biologist | a librarian | a plumber | a data scientist | a veterinarian | a
  graphic designer | a bus driver | a lawyer | a photographer | a dentist
age: a child of six | a teenager | a beginner | my grandfather | a busy person | a sceptic | a
  student | a tourist
tone: friendly | formal | funny | short and clear | polite | cheerful | serious | encouraging |
  dramatic | simple
color: red | blue | green | yellow | purple | orange | brown | grey | turquoise | pink
season: spring | summer | autumn | winter
unit: kilometres to miles | miles to kilometres | kilograms to pounds | pounds to kilograms |
  metres to feet | inches to centimetres | litres to cups | hours to minutes | days to hours |
  Celsius to Fahrenheit
function: reverses a string | counts the vowels of a text | finds the largest number of a list |
  checks whether a number is prime | removes duplicates from a list | sorts words by length |
  computes a factorial | merges two dictionaries | checks whether a word is a palindrome |
  converts Celsius to Fahrenheit | sums the digits of a number | counts how often each word occurs
  | flattens a list of lists | reads a CSV file | finds the common items of two lists | prints a
  multiplication table | computes the Fibonacci numbers | rotates a list by k places | capitalises
  every word | checks whether brackets are balanced
code_language: Python | JavaScript | C | Java | Rust | Go | Ruby | SQL | TypeScript | Bash
"""
WORDS = dict(map(_words, _TABLE.strip().replace("\n  ", " ").splitlines()))
# Slots of whole numbers, from the first to the last.
NUMBERS = {
  "few": (2, 9),
  "some": (3, 12),
  "n": (2, 99),
  "m": (2, 99),
  "years": (12, 80),
  "large": (101, 9999),
}

TEMPLATES = tuple(
  """\
How do I cook {food} for {few} people?
Give me a simple recipe for {food}.
What can I use instead of {ingredient} when I make {food}?
What can I cook with {ingredient} and {ingredient2}?
Which side dish goes well with {food}?
Name {few} dishes that are made with {ingredient}.
How long can I keep {food} in the fridge?
I have {few} days in {place}. What should I see?
What should I pack for a trip to {country} in {season}?
Tell me something surprising about {place}.
What is the best time of the year to visit {country}?
Is it better to visit {place} or {place2} with small children?
What is {country} famous for?
What is the capital of {country}, and what language do people speak there?
Name {few} traditional dishes from {country}.
Explain {science} to {age}.
What is {science}? Answer in {few} sentences.
Why is {science} important?
How are {science} and {science2} related?
Write {few} quiz questions about {science}, with answers.
Describe a simple experiment that shows {science}.
How does {technology} work? Explain it to {age}.
Who invented {technology}, and what came before it?
What would life be like without {technology}?
What are the advantages and disadvantages of {technology}?
Summarise {history} in {few} sentences.
What caused {history}, and what followed from it?
Tell {age} about {history}.
Give me {few} facts about {history}.
What is {idea}? Give an example.
Explain {idea} in one sentence.
What is the difference between {idea} and {idea2}?
Why should {age} know about {idea}?
How do I get better at {skill}?
Make a plan for {few} weeks to learn {skill}.
What are common mistakes in {skill}?
Compare {skill} and {skill2} as hobbies.
Is {skill} hard to learn at the age of {years}?
I want to {goal}. Where do I start?
Give me {few} tips to {goal}.
What is the biggest obstacle when you want to {goal}?
Can you help me? {problem}.
What should I do: {problem}?
List {few} possible reasons why {problem}.
Write an invitation to {event}. Make it {tone}.
What do I need for {event} with {some} guests?
Plan {event} on a small budget.
Suggest {few} games for {event}.
Write a message to {person}, because I want to {request}. It should be {tone}.
Write an email to {person} to {request}.
How do I politely {request}?
Think of {few} unusual uses for {object}.
Describe {object} to someone who has never seen one.
Write a riddle whose answer is {object}.
Write a short poem about {theme}.
Write a haiku about {theme}.
Write the first paragraph of a story about {theme}.
Tell a short story about {hero} and {object}.
Write a story of {few} sentences about {hero}. Make it {tone}.
Give {few} titles for a novel about {theme}.
Write a dialogue between {hero} and {hero2} about {theme}.
Give me {few} synonyms of "{word}".
What is the opposite of "{word}"?
Use the word "{word}" in {few} different sentences.
What is the difference between "{word}" and "{word2}"?
How do you say "{phrase}" in {language}?
Translate into {language}: {phrase}
Correct the grammar: {sentence}
What is wrong with this sentence? "{sentence}"
Rewrite this so that it sounds {tone}: {statement}
Summarise in five words: {statement}
Turn this into a question: {statement}
Write one more sentence after this one: {statement}
Make this shorter: {statement}
Name {few} {list}.
List {some} {list} in alphabetical order.
Which of the {list} do you find most interesting, and why?
Sort these words from A to Z: {object}, {animals}, {word}, {ingredient}
Which of these does not belong: {animals}, {animals2}, {animals3}, {object}?
Where do {animals} live, and what do they eat?
What is the difference between {animals} and {animals2}?
Give me {few} facts about {animals}.
Write a fable about {animals} and {animals2}.
Why are {animals} a good symbol for {idea}?
What does {job} do all day?
What do I have to learn to become {job}?
Write {few} interview questions for {job}.
Would you rather be {job} or {job2}?
What is {n} plus {m}?
What is {n} times {few}?
What is {large} minus {n}?
What is {n} percent of {large}?
{name} has {n} {thing} and gives {few} of them to {name2}. How many are left?
{name} buys {few} boxes of {some} {thing}. How many {thing} are there?
{name} is {years} years old. How old was {name} {few} years ago?
A train travels {n} kilometres an hour. How far does it go in {few} hours?
Convert {n} {unit}.
Is {large} divisible by {few}?
Write the number {large} in words.
Count from {n} upwards in steps of {few}. Give {some} numbers.
What colour do you get from mixing {color} and {color2}?
Describe the colour {color} without naming it.
Describe a day in {season} in {place}.
What can I do on a {season} weekend with {few} friends?
Write a function in {code_language} that {function}.
How do I write a program that {function}? Explain the steps.
Write a {code_language} function that {function}, and explain how it works.
Which tests would you write for a function that {function}?
What is {code_language} used for?
What are the main differences between {code_language} and {code_language2}?
Give three reasons to learn {code_language} in {few} months.
""".splitlines()
)


def question(seed: int, index: int) -> str:
  """Question `index` of the endless list that the seed names; it may occur twice."""
  draw = random.Random(hash_text(f"everyday {seed} {index}"))
  template = TEMPLATES[draw.randrange(len(TEMPLATES))]
  said: dict[str, str] = {}
  for slot in _slots(template):
    kind = slot.rstrip("123")
    if kind in NUMBERS:
      said[slot] = str(draw.randint(*NUMBERS[kind]))
    else:
      free = [word for word in WORDS[kind] if word not in said.values()]
      said[slot] = free[draw.randrange(len(free))]
  return template.format(**said)


def _slots(template: str) -> list[str]:
  return [name for _, name, _, _ in string.Formatter().parse(template) if name]
